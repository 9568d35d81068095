"""The programme of the mix with a variable for every service and kind, for small fleets.

Its bound is weaker than that of the decomposed one, which therefore goes in; but it holds every
combination of instances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.mig.demand import NEARLY, Kind, Service
from tessera.domain.mig.patterns import Pattern
from tessera.domain.mig.solver import Programme

_NODES = 2_000


@dataclass(frozen=True, slots=True)
class Solved:
    """GPUs of each way in the order of the ways."""

    gpus: tuple[int, ...]
    instances: Mapping[str, Pattern]
    bound: float


def undecomposed(
    services: Sequence[Service],
    ways: Sequence[tuple[float, Sequence[tuple[Kind, int]]]],
    *,
    low: float,
    high: float,
    step: float,
) -> Solved | None:
    """The best found between both costs, within a step; a way has its price and its slices."""
    kinds = sorted({kind for service in services for kind in service.throughput})
    row = {kind: at for at, kind in enumerate(kinds)}
    made = Programme()
    for _ in kinds:
        made.row(0)
    for service in services:
        made.row(service.demand * (1 - NEARLY))
        made.row(service.instances)
    cost = len(kinds) + 2 * len(services)
    made.row(low, high)
    for price, slices in ways:
        made.column(price, [*((row[kind], count) for kind, count in slices), (cost, price)])
    owners = []
    for at, service in enumerate(services):
        first = len(kinds) + 2 * at
        for kind, speed in sorted(service.throughput.items()):
            made.column(0, [(row[kind], -1), (first, speed), (first + 1, 1)])
            owners.append((service.name, kind))
    found = made.whole(_NODES, step=step)
    if found is None:
        return None
    instances: dict[str, list[tuple[Kind, int]]] = {service.name: [] for service in services}
    for (name, kind), count in zip(owners, found.columns[len(ways) :], strict=True):
        if count:
            instances[name].append((kind, count))
    patterns = {name: tuple(counts) for name, counts in instances.items()}
    return Solved(found.columns[: len(ways)], patterns, found.bound)
