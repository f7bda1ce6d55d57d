"""A cacheable request, from the claim on its object to the response."""
