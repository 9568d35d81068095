"""Implementations of the ports. Adapters translate; they decide nothing."""
