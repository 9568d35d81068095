"""Sequences that do not end as they should, with what is missing: they fail once they do."""

from collections.abc import Mapping

UNSOLVED_LAYOUTS: Mapping[str, Mapping[int, str]] = {}
"""Reasons by backend and seed."""
UNSOLVED_BATCHES: Mapping[int, str] = {}
"""Reasons by seed."""
