"""Fits the speed of the engine model to a measured engine."""
