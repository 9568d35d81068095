"""What the control plane of a large fleet costs: `make bench-control`."""
