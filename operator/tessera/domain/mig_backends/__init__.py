"""Observed MIG nodes, and the backends that partition their GPUs."""
