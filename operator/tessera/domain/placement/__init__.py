"""Placement: checks of a spec, and the cheapest hardware that keeps its SLO."""
