"""Requests to models of outside providers."""
