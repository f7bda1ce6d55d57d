"""Objects at rest: files, records, locks, eviction."""
