"""Objects in transit: fills, those who read along, hashing, pacing."""
