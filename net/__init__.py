"""Streams, bodies, tunnels, listeners, the poller."""
