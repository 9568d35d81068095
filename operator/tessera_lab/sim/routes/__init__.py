"""The simulator's HTTP routes."""
