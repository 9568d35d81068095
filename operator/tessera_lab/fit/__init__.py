"""Fits the engine machine to measured step times."""
