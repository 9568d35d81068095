"""A fleet in use, changed as little as a new demand allows.

A small fleet is rearranged at once. In a large one slices are added beside those
that are there; while that costs too much, the emptiest GPUs are rearranged, a few at a time.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.mig.demand import Kind, Offer, Service, met
from tessera.domain.mig.fleet import Gpu, instances
from tessera.domain.mig.rearrange import Ground, rearrange
from tessera.domain.mig.spread import cramped

_AT_ONCE = 8
"""GPUs that are opened together in a large fleet."""
_WINDOWS = 40
"""So often the emptiest GPUs of a large fleet are opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is there, and for whom; services by name, each with a kind on offer."""

    services: Sequence[Service]
    offers: Sequence[Offer]
    gpus: tuple[Gpu, ...]

    def cost(self, gpus: Sequence[Gpu]) -> int:
        """Of GPUs that somebody sits on."""
        prices = {offer.board.name: offer.price for offer in self.offers}
        return sum(prices[gpu.board] for gpu in gpus if gpu.paid)


def suits(fleet: Fleet) -> bool:
    """Everybody is served, and nobody sits there who should not."""
    there = instances(fleet.gpus)
    names = {service.name for service in fleet.services}
    return (
        there.keys() <= names
        and all(
            there[one.name].keys() <= one.throughput.keys()
            for one in fleet.services
            if one.alike and one.name in there
        )
        and all(met(service, known(service, there)) for service in fleet.services)
        and not cramped(fleet.services, fleet.gpus)
    )


def rearranged(fleet: Fleet, budget: int | None, worth: float | None) -> tuple[Gpu, ...] | None:
    """All GPUs opened at once; without a budget, moves have to earn what they save."""
    ground = Ground(
        services=fleet.services,
        offers=fleet.offers,
        opened=fleet.gpus,
        budget=budget,
        worth=worth,
    )
    found = rearrange(ground)
    return None if found is None else named(found)


def repaired(fleet: Fleet, budget: int) -> tuple[Gpu, ...]:
    """Opened where the change is, then where room is wasted; the cost may stay above the budget."""
    if suits(fleet) and fleet.cost(fleet.gpus) <= budget:
        return fleet.gpus
    gpus = _spared(fleet)
    if names := _concerned(fleet, gpus):
        gpus = _opened(fleet, gpus, names, still=True)
    for window in range(_WINDOWS):
        if fleet.cost(gpus) <= budget:
            break
        emptiest = sorted(
            (gpu for gpu in gpus if gpu.used), key=lambda gpu: (_share(fleet, gpu), gpu.name)
        )
        begin = window * _AT_ONCE // 2
        gpus = _opened(fleet, gpus, {gpu.name for gpu in emptiest[begin : begin + _AT_ONCE]})
    return gpus


def _spared(fleet: Fleet) -> tuple[Gpu, ...]:
    """Without services that are gone, and without instances that nobody needs."""
    services = {service.name: service for service in fleet.services}
    held = {
        name: Counter(known(services[name], {name: kinds})) if name in services else Counter()
        for name, kinds in instances(fleet.gpus).items()
    }
    gpus = {gpu.name: gpu for gpu in fleet.gpus}
    for gpu in sorted(fleet.gpus, key=lambda gpu: (_share(fleet, gpu), gpu.name)):
        slices = []
        for one in gpu.slices:
            there = held.get(one.service or "", Counter[Kind]())
            kind = gpu.kind(one)
            service = services.get(one.service or "")
            if service is None or kind not in service.throughput:
                slices.append(one._replace(service=None))
            elif met(service, there - Counter({kind: 1})):
                there[kind] -= 1
                slices.append(one._replace(service=None))
            else:
                slices.append(one)
        gpus[gpu.name] = replace(gpu, slices=tuple(slices))
    return tuple(gpus[gpu.name] for gpu in fleet.gpus)


def _opened(
    fleet: Fleet, gpus: tuple[Gpu, ...], names: set[str], *, still: bool = False
) -> tuple[Gpu, ...]:
    """The fleet with these GPUs at the least cost that they can have together."""
    found = rearrange(
        Ground(
            services=fleet.services,
            offers=fleet.offers,
            opened=[gpu for gpu in gpus if gpu.name in names],
            fixed=[gpu for gpu in gpus if gpu.name not in names],
            still=still,
        )
    )
    if found is None:
        return gpus
    changed = {gpu.name: gpu for gpu in found if gpu.name}
    added = [gpu for gpu in found if not gpu.name]
    return named([*(changed.get(gpu.name, gpu) for gpu in gpus), *added])


def _concerned(fleet: Fleet, gpus: Sequence[Gpu]) -> set[str]:
    """Some GPUs of services that are not served, and those with the most room beside them."""
    there = instances(gpus)
    wrong = {one.name for one in fleet.services if not met(one, known(one, there))}
    if not wrong:
        return set()
    room = sorted(gpus, key=lambda gpu: (not gpu.used, _share(fleet, gpu), gpu.name))
    holding = [gpu for gpu in room if any(one.service in wrong for one in gpu.slices)]
    return {gpu.name for gpu in (*holding[:_AT_ONCE], *room[:_AT_ONCE])}


def known(service: Service, there: Mapping[str, Counter[Kind]]) -> dict[Kind, int]:
    """Its instances on kinds that it is known to fit."""
    held = there.get(service.name, Counter())
    return {kind: count for kind, count in held.items() if kind in service.throughput}


def _share(fleet: Fleet, gpu: Gpu) -> float:
    """Of the GPU's memory slices, those that somebody sits on."""
    board = next(offer.board for offer in fleet.offers if offer.board.name == gpu.board)
    taken = 0
    for one in gpu.slices:
        cut = board.cut(one.profile)
        if one.service is not None:
            taken += cut.memory_slices if cut else board.memory_slices
    return taken / board.memory_slices


def named(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """By name; those without one get the first numbers that are free."""
    free = _free({gpu.name for gpu in gpus})
    return tuple(
        sorted(
            (gpu if gpu.name else replace(gpu, name=next(free)) for gpu in gpus),
            key=lambda gpu: gpu.name,
        )
    )


def _free(taken: set[str]) -> Iterator[str]:
    at = 0
    while True:
        at += 1
        if (name := f"gpu-{at:04}") not in taken:
            yield name
