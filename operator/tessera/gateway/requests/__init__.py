"""A request from its sender to its answer."""
