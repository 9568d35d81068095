"""Metrics and log lines of the operator."""
