"""Batches on spot capacity: which attempt runs where, and the status of each batch."""
