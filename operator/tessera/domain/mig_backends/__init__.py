"""MIG nodes as they are, and the backends that partition their GPUs."""
