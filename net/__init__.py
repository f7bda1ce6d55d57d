"""Streams, bodies, tunnels, listeners and the poller."""
