"""Objects in transit: fills, their readers, hashing, pacing."""
