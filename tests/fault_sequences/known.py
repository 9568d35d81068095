"""Sequences that do not end as they should, with what is missing: they fail once they do."""

from collections.abc import Mapping, Sequence

_STALE = (
    "the device plugin is not called back on a node that left its pool, or whose pool plans no more"
)
_PAUSED = "a paused device plugin stays paused when the plan of its node ends"
_REPLACEMENTS = "a unit says only after 10 minutes that its replacements find no slice"
_PARTITIONING = "a mig-manager that does nothing is named only after its own limit"
_OFFER = "the attempts to have mig-manager offer new slices last longer than 5 minutes"
_AGENTS = "AsPlanned although a node without slices and without an agent has booted"

_LAYOUTS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "agent": {
        _STALE: (2, 14, 21, 94, 159, 162),
        _PAUSED: (78, 79, 117),
        _REPLACEMENTS: (39, 59, 174),
        _AGENTS: (169,),
    },
    "mig-manager": {_STALE: (43,)},
    "mig-manager, with agents that look": {
        _REPLACEMENTS: (8, 14, 59, 125, 174),
        _PARTITIONING: (32, 121, 126, 155),
        _OFFER: (43, 116, 127, 162),
    },
}
UNSOLVED_LAYOUTS: Mapping[str, Mapping[int, str]] = {
    backend: {seed: reason for reason, seeds in reasons.items() for seed in seeds}
    for backend, reasons in _LAYOUTS.items()
}
"""Reasons by backend and seed."""
UNSOLVED_BATCHES: Mapping[int, str] = {}
"""Reasons by seed."""
