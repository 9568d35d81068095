"""LLM inference fleets on Kubernetes: the most good tokens per dollar, always saying why."""
