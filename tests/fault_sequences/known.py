"""Sequences that do not end as they should, with what is missing: they fail once they do."""

from collections.abc import Mapping, Sequence

_UNOBSERVED = (
    "without an agent, stale devices with stale labels of feature discovery cannot be observed"
)

_LAYOUTS: Mapping[str, Mapping[str, Sequence[int]]] = {"mig-manager": {_UNOBSERVED: (43,)}}
UNSOLVED_LAYOUTS: Mapping[str, Mapping[int, str]] = {
    backend: {seed: reason for reason, seeds in reasons.items() for seed in seeds}
    for backend, reasons in _LAYOUTS.items()
}
"""Reasons by backend and seed."""
UNSOLVED_BATCHES: Mapping[int, str] = {}
"""Reasons by seed."""
