"""Log, counters, the service manager."""
