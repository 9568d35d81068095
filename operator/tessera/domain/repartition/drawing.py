"""An answer of the planner as the plan of each pool, with what it costs and why."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tessera.api.mig import Assignment, GpuTarget, MigPlan, NodeTarget
from tessera.domain import money
from tessera.domain.mig.boards import GpuModel
from tessera.domain.mig.deal import place_geometry
from tessera.domain.mig.demand import GpuOffer, InstanceType, replicas_needed
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.layouts import Layout, SlicePlacement, geometry
from tessera.domain.mig.plan import LayoutPlan, plan_layouts
from tessera.domain.repartition import notation
from tessera.domain.repartition.backend import Layouts
from tessera.domain.repartition.question import (
    Drawn,
    Option,
    Question,
    Short,
    Solved,
    Terms,
    Wish,
)
from tessera.domain.repartition.wish import uncut

HORIZON = timedelta(minutes=30)
"""For so long a demand is taken to last: what a plan saves is counted until then."""
MOVE = timedelta(minutes=10)
"""A move costs so much of a GPU: the replacement loads its model and the old one finishes its
streams, both beside each other, and while a GPU is cut it serves nobody."""
WORTH = HORIZON / MOVE
"""Moves that saving a GPU may take."""
_LONGEST = 300
_SHOWN = 64
_UNKNOWN = datetime.fromtimestamp(0, UTC)


def solve(question: Question) -> Solved:
    """Plan all pools; those of one currency together, so that services find the cheapest."""
    drawn: dict[str, Drawn] = {}
    for currency in sorted({terms.currency for terms in question.terms}):
        terms = [one for one in question.terms if one.currency == currency]
        boards = {name for one in terms for name in (one.pool, uncut(one.pool))}
        wishes = [
            wish
            for wish in question.wishes
            if {kind.gpu_model for kind in wish.service.throughput} <= boards
        ]
        plan = plan_layouts(
            [wish.service for wish in wishes],
            [offer for offer in question.offers if offer.gpu_model.name in boards],
            [gpu for gpu in question.gpus if gpu.gpu_model in boards],
            moves_per_gpu=WORTH,
        )
        drawn |= {one.pool: _drawn(question, one, wishes, plan) for one in terms}
    return Solved(question=question, pools=drawn)


def _drawn(question: Question, terms: Terms, wishes: Sequence[Wish], plan: LayoutPlan) -> Drawn:
    names = {terms.pool, uncut(terms.pool)}
    before = [gpu for gpu in question.gpus if gpu.gpu_model in names]
    after = [gpu for gpu in plan.gpus if gpu.gpu_model in names]
    mine = [wish for wish in wishes if {kind.gpu_model for kind in wish.service.throughput} & names]
    offer = next(one for one in question.offers if one.gpu_model.name == terms.pool)
    layouts = _layouts(question, offer, [gpu for gpu in after if gpu.gpu_model == terms.pool])
    nodes = _nodes(layouts, terms)
    services = tuple(_assignments(mine, after, terms))
    short = tuple(_short(wish, plan.gpus) for wish in mine if wish.service.name in plan.unmet)
    was, used = (
        sum(gpu.used or bool(gpu.foreign_slices) for gpu in gpus) for gpus in (before, after)
    )
    cut = {
        name
        for name, (_, layout) in layouts.items()
        if not _same(question.layouts[name], layout, terms)
    }
    planned = {one.service: one.profile for one in services}
    told = MigPlan(
        name=digest(nodes, services),
        at=_UNKNOWN,
        gpus_before=was,
        gpus_after=used,
        per_hour_before=money.units(was * terms.per_gpu_hour),
        per_hour_after=money.units(used * terms.per_gpu_hour),
        bound=money.units(round(used * terms.per_gpu_hour * (1 - plan.gap))),
        gap=Decimal(f"{plan.gap:.4f}"),
        moves=sum(
            _moved(gpu, _gone(gpu, layouts, cut, offer), planned)
            for gpu in before
            if gpu.name in layouts
        ),
        services=services,
        nodes=nodes,
        unmet=tuple(one.service for one in short)[:_SHOWN],
    )
    return Drawn(plan=told, short=short, cuts=len(cut))


def _moved(gpu: FleetGpu, gone: Collection[SlicePlacement], planned: Mapping[str, str]) -> int:
    """Replicas that leave the GPU: their slices go, or their services are planned on others."""
    return sum(
        one.service is not None
        and (one.placement in gone or planned.get(one.service, one.profile) != one.profile)
        for one in gpu.slices
    )


def _gone(
    gpu: FleetGpu,
    layouts: Mapping[str, tuple[FleetGpu, Layout]],
    cut: Collection[str],
    offer: GpuOffer,
) -> Collection[SlicePlacement]:
    """Slices that somebody has to leave, even to come back, for what is cut to be cut."""
    nodes = {layouts[name][0].node for name in cut}
    if offer.drains_node and gpu.node in nodes:
        return gpu.layout
    if gpu.name not in cut:
        return ()
    stays = layouts[gpu.name][1] if offer.sibling_safe else ()
    return [spot for spot in gpu.layout if spot not in stays]


def _layouts(
    question: Question, offer: GpuOffer, gpus: Sequence[FleetGpu]
) -> dict[str, tuple[FleetGpu, Layout]]:
    """All GPUs in MIG mode as they should be, by name.

    Where a GPU is cut as a whole, what is left of it is cut too, for the services that sit there
    and then for others: a slice more later would cost everybody on it a move.
    """
    seen = {gpu.name: gpu.layout for gpu in question.gpus}
    profiles = Counter(one.profile for gpu in gpus for one in gpu.slices if one.service)
    found = {}
    for gpu in gpus:
        layout = gpu.layout
        if layout == seen[gpu.name]:
            layout = question.layouts[gpu.name]
        elif not offer.sibling_safe:
            layout = _filled(offer.gpu_model, layout, [one for one, _ in profiles.most_common()])
        found[gpu.name] = (gpu, layout)
    return found


def _filled(board: GpuModel, layout: Layout, others: Sequence[str]) -> Layout:
    own = sorted({spot.profile for spot in layout}, key=lambda one: (-_slices(board, one), one))
    for profile in (*own, *others):
        while (grown := place_geometry(board, ((profile, 1),), layout)) is not None:
            layout = grown
    return layout


def _slices(board: GpuModel, profile: str) -> int:
    cut = board.find_profile(profile)
    return cut.memory_slices if cut else 0


def _same(one: Layout, other: Layout, terms: Terms) -> bool:
    return one == other if terms.pinned_starts else geometry(one) == geometry(other)


def _nodes(layouts: Mapping[str, tuple[FleetGpu, Layout]], terms: Terms) -> tuple[NodeTarget, ...]:
    found: dict[str, list[GpuTarget]] = {}
    for name, (gpu, layout) in sorted(layouts.items()):
        index = int(name.rpartition("/")[2])
        tiles = tuple(notation.written(spot, pinned=terms.pinned_starts) for spot in layout)
        found.setdefault(gpu.node, []).append(GpuTarget(gpu=index, slices=tiles))
    return tuple(NodeTarget(node=node, gpus=tuple(gpus)) for node, gpus in sorted(found.items()))


def layouts_of(plan: MigPlan, boards: Mapping[str, GpuModel]) -> Mapping[str, Layouts]:
    """The plan by node, for nodes whose board is known; places are made up where it has none."""
    return {
        one.node: {gpu.gpu: notation.layout(boards[one.node], gpu.slices) for gpu in one.gpus}
        for one in plan.nodes
        if one.node in boards
    }


def digest(nodes: Sequence[NodeTarget], services: Sequence[Assignment]) -> str:
    """The name of a plan: of what is cut, and who gets what; counts follow the load."""
    told = [[one.model_dump() for one in nodes], [[one.service, one.profile] for one in services]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:10]


def _assignments(
    wishes: Sequence[Wish], gpus: Sequence[FleetGpu], terms: Terms
) -> Iterator[Assignment]:
    there = replicas_by_service(gpus)
    for wish in wishes:
        for kind, count in sorted(there.get(wish.service.name, {}).items()):
            if kind in wish.service.throughput:
                yield Assignment(
                    service=wish.service.name,
                    profile=kind.profile,
                    replicas=count,
                    was=wish.was.profile if wish.was else "",
                    why=_why(wish, kind, count, terms)[:_LONGEST],
                )


def _why(wish: Wish, kind: InstanceType, count: int, terms: Terms) -> str:
    """The arithmetic, with the nearest rival; for a service that wants no neighbours, its price."""
    service = wish.service
    speed = service.throughput[kind]
    told = (
        f"{service.demand:.0f} tokens/s and at least {service.min_replicas} replicas: {count} x "
        f"{kind.profile} of {kind.gpu_model.partition('/')[0]} at {speed:.0f} tokens/s"
    )
    others = [one for one in wish.options if one.kind in service.throughput and one.kind != kind]
    if others:
        told += f"; {_nearest(wish, others, terms)} as a share of GPUs, but not in this mix"
    shared = [one for one in wish.options if one.kind not in service.throughput]
    if shared:
        paid = next(one for one in wish.options if one.kind == kind).hourly * count
        told += (
            f"; isolation gpu keeps others off for {_price(paid, terms)} an hour, where "
            f"{_nearest(wish, shared, terms)}"
        )
    return told


def _nearest(wish: Wish, options: Sequence[Option], terms: Terms) -> str:
    """`2 x 2g.20gb would cost 1.20 USD`."""
    cost, name, count = min(
        (count * one.hourly, one.kind.profile, count)
        for one in options
        for count in (replicas_needed(wish.service, one.tokens_per_second),)
    )
    return f"{count} x {name} would cost {_price(cost, terms)}"


def _price(nanos: int, terms: Terms) -> str:
    return str(money.Money(nanos, terms.currency))


def _short(wish: Wish, gpus: Sequence[FleetGpu]) -> Short:
    there = replicas_by_service(gpus).get(wish.service.name, Counter())
    gets = sum(wish.service.throughput.get(kind, 0.0) * count for kind, count in there.items())
    return Short(service=wish.service.name, wished=wish.service.demand, gets=gets)
