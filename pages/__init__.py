"""What dduct answers itself."""
