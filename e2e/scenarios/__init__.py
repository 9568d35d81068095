"""Scenarios: what users and failures do to an installed Tessera."""
