"""Settings of policies: the combinations to tune over, and what several families share."""

from collections.abc import Sequence
from itertools import product

from tessera_lab.fleet.observation import Settings

# Published bounds are those of a demonstration; a tuned policy may use a whole fleet.
MOST_REPLICAS = 32.0


def grid(**knobs: Sequence[float]) -> tuple[Settings, ...]:
    """Return every combination of the knobs' values."""
    return tuple(dict(zip(knobs, values, strict=True)) for values in product(*knobs.values()))
