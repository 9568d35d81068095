"""Tessera's own kinds, each declared by one row."""
