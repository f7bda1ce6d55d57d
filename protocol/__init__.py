"""HTTP as values: pure, no sockets, no files."""
