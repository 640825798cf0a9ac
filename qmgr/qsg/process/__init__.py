"""Processes on one machine: configuration, entry points, supervision, and the demo built on them."""
