"""Scaling: load, the replica count it asks for, and how replicas are drained and rolled out."""
