"""One dduct: its configuration, start, reload, stop and worker processes."""
