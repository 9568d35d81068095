"""Prometheus: what is asked of it, and its answers as readings."""
