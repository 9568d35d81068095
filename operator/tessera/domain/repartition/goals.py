"""How the GPUs of a pool should be, and which of them are not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tessera.api.mig import GpuTarget, MigPlan, NodeTarget, Unit
from tessera.domain.mig.boards import GpuModel
from tessera.domain.mig.deal import place_geometry
from tessera.domain.mig.layouts import Geometry, Layout, SlicePlacement, geometry, layout_error
from tessera.domain.repartition.backend import Layouts
from tessera.domain.repartition.devices import spelled
from tessera.domain.repartition.facts import Card, Ground


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One node of the plan."""

    ground: Ground
    wanted: Layouts
    """All GPUs of the plan that the board can carry."""
    differing: tuple[int, ...]
    """Those of them that are not as planned."""
    absent: tuple[int, ...] = ()
    """GPUs of the plan that are not there in MIG mode."""
    lent: tuple[int, ...] = ()
    """GPUs that are wanted otherwise than planned for a while."""
    impossible: tuple[str, ...] = ()
    """What the plan asks of GPUs and the board cannot carry, with the reason."""


def goals(
    plan: MigPlan, units: Sequence[Unit], grounds: Sequence[Ground], *, pinned: bool
) -> Mapping[str, Goal]:
    """By node; what GPUs are for a while goes before the plan.

    Nodes that are gone are left out: nothing is to be done for them.
    """
    there = {ground.name: ground for ground in grounds}
    instead = {unit.node: {one.gpu: one for one in unit.instead} for unit in units}
    return {
        node.node: _goal(node, instead.get(node.node, {}), there[node.node], pinned=pinned)
        for node in sorted(plan.nodes, key=lambda one: one.node)
        if node.node in there
    }


def _goal(
    node: NodeTarget, instead: Mapping[int, GpuTarget], ground: Ground, *, pinned: bool
) -> Goal:
    cards = {card.index: card for card in ground.cards}
    exact = pinned and ground.tells_pods
    wanted: dict[int, Layout] = {}
    impossible = []
    for planned in sorted(node.gpus, key=lambda one: one.gpu):
        target = instead.get(planned.gpu, planned)
        there = known(ground.board, cards[target.gpu].layout) if target.gpu in cards else ()
        layout = _layout(ground.board, target.slices, there, exact=exact)
        if isinstance(layout, str):
            impossible.append(f"GPU {target.gpu} of {ground.name}: {layout}")
        else:
            wanted[target.gpu] = layout
    return Goal(
        ground=ground,
        wanted=wanted,
        differing=_differing(ground, wanted, cards),
        absent=tuple(one.gpu for one in node.gpus if one.gpu not in cards),
        lent=tuple(sorted(instead)),
        impossible=tuple(impossible),
    )


def _differing(ground: Ground, wanted: Layouts, cards: Mapping[int, Card]) -> tuple[int, ...]:
    """Where no agent tells which GPU has which slices, all of a node, or none."""
    there = {gpu: known(ground.board, cards[gpu].layout) for gpu in wanted if gpu in cards}
    if ground.tells_pods:
        return tuple(gpu for gpu in there if there[gpu] != wanted[gpu])
    have, want = (
        geometry(spot for gpu in there for spot in layouts[gpu]) for layouts in (there, wanted)
    )
    return () if have == want else tuple(there)


@lru_cache(4096)
def known(board: GpuModel, layout: Layout) -> Layout:
    """With the names that the table has for the profiles."""
    return tuple(
        sorted(SlicePlacement(spot.start, spelled(board, spot.profile)) for spot in layout)
    )


@lru_cache(4096)
def _layout(
    board: GpuModel, slices: tuple[str, ...], there: Layout, *, exact: bool
) -> Layout | str:
    """With the places of the plan where they count, else around what is there already."""
    parts = [tile.partition("@") for tile in slices]
    unknown = next(
        (profile for profile, _, _ in parts if board.find_profile(profile) is None), None
    )
    if unknown is not None:
        names = ", ".join(cut.name for cut in board.profiles)
        return f"{board.name} has no profile {unknown}, but {names}"
    if exact and all(start for _, _, start in parts):
        layout = known(
            board, tuple(SlicePlacement(int(start), profile) for profile, _, start in parts)
        )
        return layout_error(board, layout) or layout
    counts = geometry(SlicePlacement(0, spelled(board, profile)) for profile, _, _ in parts)
    return _around(board, counts, there) or (
        f"{' + '.join(slices)} do not fit on one {board.name}" if counts else ()
    )


def _around(board: GpuModel, counts: Geometry, there: Layout) -> Layout | None:
    """A layout with these counts that keeps as much as it can of what there is, by start."""
    if geometry(there) == counts:
        return there
    kept: Layout = ()
    found = place_geometry(board, counts)
    for spot in there:
        grown = (*kept, spot)
        rest = Counter(dict(counts))
        rest.subtract(one.profile for one in grown)
        if min(rest.values(), default=-1) >= 0 and rest.keys() == dict(counts).keys():
            with_it = place_geometry(board, tuple(sorted((+rest).items())), grown)
            kept, found = (grown, with_it) if with_it is not None else (kept, found)
    return found
