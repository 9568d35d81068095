"""Batches on spot: which attempt runs where, and what is said of it."""
