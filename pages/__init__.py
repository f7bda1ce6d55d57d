"""Built-in pages."""
