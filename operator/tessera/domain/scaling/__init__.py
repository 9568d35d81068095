"""Scaling: the load of a service, and the replica count it asks for."""
