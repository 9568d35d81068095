"""Sequences that do not end as they should, with what is missing: they fail once they do."""

from collections.abc import Mapping, Sequence

_UNOBSERVED = (
    "without an agent, stale devices with stale labels of feature discovery cannot be observed"
)

_FOREIGN_POD = "AsPlanned does not name the foreign pod on whose slice a replica waits"

_LAYOUTS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "mig-manager": {_UNOBSERVED: (255,)},
    "mig-manager, with agents that look": {_FOREIGN_POD: (12, 284)},
    "agent": {_FOREIGN_POD: (295,)},
}
UNSOLVED_LAYOUTS: Mapping[str, Mapping[int, str]] = {
    backend: {seed: reason for reason, seeds in reasons.items() for seed in seeds}
    for backend, reasons in _LAYOUTS.items()
}
"""Reasons by backend and seed."""
UNSOLVED_BATCHES: Mapping[int, str] = {}
"""Reasons by seed."""
