"""The GPUs of a node."""
