"""Scaling policies: the product's own and those that others publish."""
