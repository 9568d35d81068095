"""Compares the simulator with a real vLLM."""
