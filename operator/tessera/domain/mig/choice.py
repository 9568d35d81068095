"""Who is served, and services that stay of one kind on which: before anybody has a seat.

What does not fit is served as far as it goes: floors first, the largest before others, then the
whole demand in the same order.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.mig.demand import Corner, Kind, Offer, Service, needed
from tessera.domain.mig.fill import fillings
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.layouts import Geometry, geometry
from tessera.domain.mig.mix import Mix, cheapest_mix, on_offer, some_mix

_MANY = 24
"""Services of which it is asked whether they had better keep their kind."""
_TRIED = 16
"""Services behind the first one that does not fit of which it is asked whether they do."""
_PARTS = 32
"""A demand that does not fit is lowered in so many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Services as they are served."""

    services: tuple[Service, ...]
    mix: Mix
    bound: int
    """No mix that serves them on any kinds costs less."""


Mixes = Callable[[Iterable[Service]], Mix]


def corners(
    gpus: Iterable[Gpu], offers: Sequence[Offer], services: Iterable[Service]
) -> list[Corner]:
    """What GPUs that are paid anyway can hold besides what is fixed there."""
    known = {offer.board.name: offer for offer in offers}
    kinds = {kind for service in services for kind in service.throughput}
    profiles = {
        name: tuple(sorted(kind.profile for kind in kinds if kind.board == name)) for name in known
    }
    found = Counter(
        (gpu.board, _ways(gpu, known[gpu.board], profiles[gpu.board]))
        for gpu in gpus
        if gpu.sunk and gpu.board in known
    )
    return [Corner(board, ways, count) for (board, ways), count in sorted(found.items())]


def _ways(gpu: Gpu, offer: Offer, profiles: tuple[str, ...]) -> tuple[Geometry, ...]:
    there = geometry(spot for spot in gpu.layout if spot not in gpu.fixed)
    if gpu.locked or not offer.sibling_safe:
        return (there,)
    return fillings(offer.board, profiles, gpu.fixed)


def choose(
    services: Sequence[Service],
    offers: Sequence[Offer],
    beside: Sequence[Corner],
    now: Mapping[str, Counter[Kind]],
    worth: float | None,
) -> Chosen:
    """At least cost; a service of one kind that has instances keeps its kind unless another saves
    enough for all of them to move (`worth` moves for the dearest GPU)."""

    def mixed(asked: Iterable[Service]) -> Mix:
        return cheapest_mix(asked, offers, beside)

    wanted = [on_offer(service, offers) for service in services]
    mix = mixed(wanted)
    if any(one.throughput for one in wanted if one.name in mix.unmet):
        wanted = _as_far_as_it_goes(wanted, mixed, lambda asked: some_mix(asked, offers, beside))
        mix = mixed(wanted)
        if mix.unmet:
            mix = some_mix(wanted, offers, beside) or mix
    served = [service for service in wanted if service.name in mix.instances]
    bound = mix.bound
    if any(service.alike for service in served):
        dearest = max(offer.price for offer in offers)
        earned = math.inf if worth is None else worth / dearest
        mix, served = _settled(served, mix, mixed, now, earned)
    return Chosen(services=tuple(served), mix=mix, bound=min(bound, mix.cost))


def _as_far_as_it_goes(
    services: Sequence[Service], mixed: Mixes, some: Callable[[Iterable[Service]], Mix | None]
) -> list[Service]:
    """Those for whose floors there is room, with as much of their demand as there is room for."""
    floors = {one.name: _at_least(one) for one in services if one.instances}
    held = mixed(floors.values()).instances
    order = sorted(
        (one for one in services if one.name in held), key=lambda one: (-one.floor, one.name)
    )
    now = {one.name: floors[one.name] for one in order}
    late = sorted(
        (one for one in floors.values() if one.name not in held and one.throughput),
        key=lambda one: (-one.floor, one.name),
    )

    def fits(raised: Iterable[Service]) -> bool:
        asked = now | {one.name: one for one in raised}
        return some(asked.values()) is not None

    for one in late[:_TRIED]:
        fewer = (replace(one, floor=count) for count in range(one.floor - 1, 0, -1))
        if (found := next((less for less in fewer if fits([less])), None)) is not None:
            now[one.name] = found
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(order[:middle]) else (low, middle - 1)
    now |= {one.name: one for one in order[:low]}
    for one in order[low : low + _TRIED]:
        parts = [replace(one, demand=one.demand * part / _PARTS) for part in range(_PARTS + 1)]
        low, high = 0, _PARTS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits([parts[middle]]) else (low, middle - 1)
        now[one.name] = parts[low] if low else floors[one.name]
    return [now[one.name] for one in services if one.name in now]


def _at_least(service: Service) -> Service:
    return replace(service, demand=0.0, floor=service.instances)


def _settled(
    services: Sequence[Service],
    mix: Mix,
    mixed: Mixes,
    now: Mapping[str, Counter[Kind]],
    earned: float,
) -> tuple[Mix, list[Service]]:
    """Every service that is alike with its kind alone.

    All of them may keep the kinds that they have if that costs nothing. Otherwise one after the
    other, those with the most instances first, is asked to; it may change where what that saves is
    worth the moves of all.
    """
    best, asked = mix, set[str]()
    kept = {one.name: _only(one, kind) for one, kind, _ in _having(services, now)}
    found = mixed([kept.get(one.name, one) for one in services])
    if not found.unmet and found.cost <= mix.cost:
        best = found
    else:
        kept = {}
    while len(asked) < _MANY:
        moving = [
            (-count, service.name, service, kind)
            for service, kind, count in _having(services, now)
            if service.name not in asked and best.instances[service.name][0][0] != kind
        ]
        if not moving:
            break
        less, name, service, kind = min(moving)
        asked.add(name)
        trial = kept | {name: _only(service, kind)}
        found = mixed([trial.get(one.name, one) for one in services])
        if not found.unmet and (found.cost - best.cost) * earned < -less:
            kept, best = trial, found
    fixed = {one.name: _only(one, best.instances[one.name][0][0]) for one in services if one.alike}
    return best, [fixed.get(one.name, one) for one in services]


def _having(
    services: Sequence[Service], now: Mapping[str, Counter[Kind]]
) -> Iterator[tuple[Service, Kind, int]]:
    """Services that are alike with the kind that most of their instances have, and with how many
    of these are needed: the others go anyway."""
    for service in services:
        there = now.get(service.name, Counter[Kind]())
        usable = [(-count, kind) for kind, count in there.items() if kind in service.throughput]
        if service.alike and usable:
            less, kind = min(usable)
            yield service, kind, min(-less, needed(service, service.throughput[kind]))


def _only(service: Service, kind: Kind) -> Service:
    return replace(service, throughput={kind: service.throughput[kind]})
