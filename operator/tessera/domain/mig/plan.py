"""The plan of layouts: what to cut, who sits where, who moves, how far that is from the best."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tessera.domain.mig.changes import Changes, changes
from tessera.domain.mig.choice import choose, corners
from tessera.domain.mig.deal import deal
from tessera.domain.mig.demand import Offer, Service, met
from tessera.domain.mig.fleet import Gpu, instances
from tessera.domain.mig.mix import Mix
from tessera.domain.mig.repair import Fleet, known, named, rearranged, repaired, suits
from tessera.domain.mig.spread import cramped, on_nodes, spread

_EXACT = 24
"""So many GPUs are rearranged at once."""
_LARGE = 256
"""The same where GPUs are limited, so that there are no others to begin with."""
_NEARLY = 0.005
"""Of the cost: a large fleet may be that far from the optimum before more instances move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """GPUs in use and idle ones that were there before, by name."""

    gpus: tuple[Gpu, ...]
    changes: Changes
    """Against what was there."""
    cost: int
    bound: int
    """No layouts that serve the same services cost less."""
    unmet: tuple[str, ...]
    """Services that the GPUs on offer cannot serve, or not with all that they ask for."""
    cramped: tuple[str, ...] = ()
    """Services on fewer GPUs or nodes than they should be."""

    @property
    def used(self) -> int:
        """GPUs that somebody sits on."""
        return sum(gpu.used for gpu in self.gpus)

    @property
    def gap(self) -> float:
        """How far it may be from the optimum, as a share of its cost."""
        return (self.cost - self.bound) / self.cost if self.cost else 0.0


def plan_layouts(
    services: Iterable[Service],
    offers: Iterable[Offer],
    current: Iterable[Gpu] = (),
    *,
    worth: float | None = None,
) -> LayoutPlan:
    """At least cost, then with the fewest moves. Equal input in any order gives equal plans.

    `worth` is how many moves saving a GPU, the dearest one, may take; a saving that takes more is
    left until the demand changes further. None for any number.
    """
    offered = sorted(offers, key=lambda offer: offer.board.name)
    wanted = sorted(services, key=lambda service: service.name)
    there = tuple(sorted(current, key=lambda gpu: gpu.name))
    chosen = choose(wanted, offered, corners(there, offered, wanted), instances(there), worth)
    mix = chosen.mix
    fleet = Fleet(services=chosen.services, offers=offered, gpus=there)
    serves = bool(there) and suits(fleet)
    gpus = there
    if not (serves and _is_least(fleet, mix)):
        gpus = _spread(fleet, _planned(fleet, mix, worth))
        if serves and fleet.cost(gpus) >= fleet.cost(there):
            gpus = there
    cost = fleet.cost(gpus)
    return LayoutPlan(
        gpus=gpus,
        changes=changes(there, gpus),
        cost=cost,
        bound=min(chosen.bound, cost),
        unmet=_unmet(wanted, gpus),
        cramped=cramped(chosen.services, gpus),
    )


def _unmet(services: Iterable[Service], gpus: Iterable[Gpu]) -> tuple[str, ...]:
    """Those that have less than they ask for."""
    there = instances(gpus)
    return tuple(one.name for one in services if one.instances and not met(one, known(one, there)))


def _is_least(fleet: Fleet, mix: Mix) -> bool:
    """Whether what there is costs no more than a fleet from nothing would.

    With spreading that is more than the mix, which knows no names.
    """
    cost = fleet.cost(fleet.gpus)
    if cost <= mix.cost or not any(max(one.gpus, one.nodes) > 1 for one in fleet.services):
        return cost <= mix.cost
    boards = {offer.board.name: offer.board for offer in fleet.offers}
    return cost <= fleet.cost(_spread(fleet, deal(mix, boards)))


def _spread(fleet: Fleet, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Only where somebody asks for it; then every GPU has a node, if nodes are asked for."""
    boards = {offer.board.name: offer.board for offer in fleet.offers}
    nodes = any(service.nodes > 1 for service in fleet.services)
    each = min((offer.per_node for offer in fleet.offers), default=1)
    placed = on_nodes(gpus, each) if nodes else gpus
    if not cramped(fleet.services, placed):
        return placed
    found = spread(fleet.services, placed, boards)
    return named(on_nodes(found, each) if nodes else found)


def _planned(fleet: Fleet, mix: Mix, worth: float | None) -> tuple[Gpu, ...]:
    boards = {offer.board.name: offer.board for offer in fleet.offers}
    if not fleet.gpus:
        return deal(mix, boards)
    if any(gpu.sunk for gpu in fleet.gpus) or any(one.most is not None for one in fleet.offers):
        return _among_those_there(fleet, mix, worth)
    if len(fleet.gpus) <= _EXACT:
        budget = mix.cost if worth is None else None
        if (found := rearranged(fleet, budget, worth)) is not None:
            return found
    enough = math.floor(mix.cost * (1 + _NEARLY))
    mended = repaired(fleet, enough)
    return mended if fleet.cost(mended) <= enough else _anew(fleet, mix)


def _among_those_there(fleet: Fleet, mix: Mix, worth: float | None) -> tuple[Gpu, ...]:
    """Nothing may be added at will, so that all is rearranged at once; at worst nothing is."""
    if len(fleet.gpus) > _LARGE:
        mended = repaired(fleet, math.floor(mix.cost * (1 + _NEARLY)))
        if suits(replace(fleet, gpus=mended)):
            return mended
    if worth is None and (found := rearranged(fleet, mix.cost, None)) is not None:
        return found
    return rearranged(fleet, None, worth) or fleet.gpus


def _anew(fleet: Fleet, mix: Mix) -> tuple[Gpu, ...]:
    """The whole mix, on the GPUs that resemble it most; idle ones are left as they are."""
    left = {gpu.name: gpu for gpu in fleet.gpus}
    holding: dict[tuple[str, str], list[str]] = {}
    for gpu in fleet.gpus:
        for service in sorted({one.service for one in gpu.slices if one.service is not None}):
            holding.setdefault((gpu.board, service), []).append(gpu.name)
    made = []
    for gpu in deal(mix, {offer.board.name: offer.board for offer in fleet.offers}):
        like = Counter(
            name
            for one in gpu.slices
            for name in holding.get((gpu.board, one.service or ""), ())
            if name in left
        )
        spare = (name for name, other in left.items() if other.board == gpu.board)
        name = max(like, key=lambda one: (like[one], one)) if like else next(spare, "")
        left.pop(name, None)
        made.append(replace(gpu, name=name))
    idle = (
        replace(gpu, slices=tuple(one._replace(service=None) for one in gpu.slices))
        for gpu in left.values()
    )
    return named([*made, *idle])
