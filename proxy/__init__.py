"""One client connection, and one decision for each request."""
