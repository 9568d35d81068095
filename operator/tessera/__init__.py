"""Kubernetes operator for LLM inference fleets on MIG slices and whole GPUs."""

# Of the distribution, of the chart and of its images: `tests/test_distributions.py` compares them.
__version__ = "0.2.0"
