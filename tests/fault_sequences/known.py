"""Sequences that do not end as they should, with what is missing: they fail once they do."""

from collections.abc import Mapping, Sequence

_STALE = (
    "the device plugin is not called back on a node that left its pool, or whose pool plans no more"
)
_REPLACEMENTS = "a unit says only after 10 minutes that its replacements find no slice"
_PARTITIONING = "a mig-manager that does nothing is named only after its own limit"
_OFFER = "the attempts to have a node offer its new slices last longer than 5 minutes"

_LAYOUTS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "agent": {
        _STALE: (2, 14, 21, 94, 159, 180, 181),
        _REPLACEMENTS: (39, 78, 174, 189),
        _OFFER: (177,),
    },
    "mig-manager": {_STALE: (43,)},
    "mig-manager, with agents that look": {
        _REPLACEMENTS: (8, 59, 125, 174),
        _PARTITIONING: (126, 155),
        _OFFER: (43, 116, 127),
    },
}
UNSOLVED_LAYOUTS: Mapping[str, Mapping[int, str]] = {
    backend: {seed: reason for reason, seeds in reasons.items() for seed in seeds}
    for backend, reasons in _LAYOUTS.items()
}
"""Reasons by backend and seed."""
UNSOLVED_BATCHES: Mapping[int, str] = {}
"""Reasons by seed."""
