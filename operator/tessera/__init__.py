"""Kubernetes operator for LLM inference fleets on MIG slices and whole GPUs."""
