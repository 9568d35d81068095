"""Which plan of layouts a pool carries out, as its status tells and keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.domain.mig.boards import WHOLE_GPU, GpuModel
from tessera.domain.mig.deal import place_geometry
from tessera.domain.mig.demand import InstanceType, replicas_needed
from tessera.domain.mig.layouts import geometry
from tessera.domain.pools import PoolView
from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.repartition.backend import Capabilities
from tessera.domain.repartition.drawing import digest
from tessera.domain.repartition.facts import APPROVAL, Ground
from tessera.domain.repartition.notation import written
from tessera.domain.repartition.question import (
    Drawn,
    Question,
    Solved,
)
from tessera.domain.repartition.wish import uncut

STEADY = timedelta(minutes=5)
"""For so long a plan that only saves has to be the answer before it takes the place of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What becomes of a pool's plan, and what there is to say of it."""

    status: MigStatus
    verdict: StatusVerdict[LayoutReady] | None = None
    """None leaves the word to whoever carries out the plan."""


def adopt(
    view: PoolView,
    solved: Solved | None,
    grounds: Sequence[Ground],
    can: Capabilities,
    at: datetime,
) -> Adopted:
    """The plan that is to be carried out in a pool with `spec.mig`.

    A plan that gives everybody the same on the same layouts is no new one. While GPUs are cut,
    another one is taken only if the first cannot serve what is needed now.
    """
    spec = view.pool.spec
    status = view.pool.status.mig or MigStatus()
    if spec is None or spec.mig is None:
        return Adopted(status=MigStatus(), verdict=None)
    if spec.mig.mode == "static":
        return _static(view, spec.mig, status, grounds, can, at)
    drawn = solved.pools.get(view.pool.name) if solved else None
    if solved is None or drawn is None:
        return Adopted(status=status, verdict=None if status.target else _planning(view, grounds))
    return _decided(view, spec.mig, solved.question, drawn, at)


def _planning(view: PoolView, grounds: Sequence[Ground]) -> StatusVerdict[LayoutReady]:
    gpus = sum(len(ground.cards) for ground in grounds)
    return StatusVerdict(
        LayoutReady.PLANNING,
        f"layouts of {gpus} GPUs in MIG mode are being planned for {view.nodes} nodes",
    )


def _decided(view: PoolView, mig: Mig, question: Question, drawn: Drawn, at: datetime) -> Adopted:
    status, unmet = view.pool.status.mig or MigStatus(), _unmet(drawn)
    plan, target = drawn.plan, status.target
    if target is not None and target.name == plan.name:
        return Adopted(status=status.model_copy(update={"proposed": None}), verdict=unmet)
    serves = target is not None and _serves(target, plan, question, view.pool.name)
    waiting = status.proposed
    if waiting is not None and waiting.name != plan.name:
        waiting = None
    if serves and status.units:
        kept = status.model_copy(update={"proposed": waiting})
        return Adopted(status=kept, verdict=unmet)
    since = waiting.at if waiting is not None else at
    lasting = at - since >= STEADY or mig.mode == "propose"
    if serves and not lasting:
        made = plan.model_copy(update={"at": since})
        return Adopted(status=status.model_copy(update={"proposed": made}), verdict=unmet)
    waits = mig.mode == "propose" and drawn.cuts and view.pool.approved_plan != plan.name
    if not waits:
        made = plan.model_copy(update={"at": at})
        kept = status.model_copy(update={"target": made, "proposed": None})
        return Adopted(status=kept, verdict=unmet)
    made = plan.model_copy(update={"at": since})
    return Adopted(
        status=status.model_copy(update={"proposed": made}),
        verdict=StatusVerdict(
            LayoutReady.AWAITING_APPROVAL,
            f"plan {plan.name} cuts {drawn.cuts} GPUs anew and moves {plan.moves} replicas, for "
            f"{plan.per_hour_after:f} instead of {plan.per_hour_before:f} an hour; kubectl "
            f"annotate acceleratorpool {view.pool.name} {APPROVAL}={plan.name} --overwrite",
        ),
    )


def _serves(target: MigPlan, plan: MigPlan, question: Question, pool: str) -> bool:
    """Whether everybody whom the plan has in the pool gets what he needs by the target, too."""
    here = {one.service for one in plan.services}
    given = {one.service: one for one in target.services}
    for wish in question.wishes:
        if wish.service.name not in here:
            continue
        mine = given.get(wish.service.name)
        if mine is None:
            return False
        board = uncut(pool) if mine.profile == WHOLE_GPU else pool
        speed = wish.service.throughput.get(InstanceType(board, mine.profile), 0.0)
        if not speed or mine.replicas < replicas_needed(wish.service, speed):
            return False
    return True


def _unmet(drawn: Drawn) -> StatusVerdict[LayoutReady] | None:
    if not drawn.short:
        return None
    told = ", ".join(
        f"{one.service} {one.gets:.0f} of {one.wished:.0f} tokens/s" for one in drawn.short[:5]
    )
    more = f" and {len(drawn.short) - 5} more" if len(drawn.short) > 5 else ""
    return StatusVerdict(
        LayoutReady.INSUFFICIENT_CAPACITY,
        f"{len(drawn.short)} services get less than they need: {told}{more}; add nodes, or lower "
        "scaling.minReplicas or maxReplicas of others",
    )


def _static(
    view: PoolView,
    mig: Mig,
    status: MigStatus,
    grounds: Sequence[Ground],
    can: Capabilities,
    at: datetime,
) -> Adopted:
    """One layout for every GPU; one that has it stays as it is, wherever its slices begin."""
    if not mig.layout:
        return Adopted(
            status=MigStatus(),
            verdict=StatusVerdict(
                LayoutReady.NOT_MANAGED, "spec.mig.layout is empty: slices stay as they are"
            ),
        )
    way = tuple(sorted(mig.layout.items()))
    for ground in grounds:
        if told := _impossible(ground.board, mig):
            return Adopted(status=status, verdict=StatusVerdict(LayoutReady.UNKNOWN_PROFILE, told))
    nodes = tuple(
        NodeTarget(
            node=ground.name,
            gpus=tuple(
                GpuTarget(
                    gpu=card.index,
                    slices=tuple(
                        written(spot, pinned=can.pinned_starts)
                        for spot in (
                            card.layout
                            if geometry(card.layout) == way
                            else place_geometry(ground.board, way) or ()
                        )
                    ),
                )
                for card in sorted(ground.cards, key=lambda card: card.index)
            ),
        )
        for ground in sorted(grounds, key=lambda ground: ground.name)
        if ground.cards
    )
    if status.target is not None and (status.target.nodes == nodes or status.units):
        return Adopted(status=status.model_copy(update={"proposed": None}))
    gpus = sum(len(node.gpus) for node in nodes)
    price = view.price.per_gpu_hour * gpus if view.price else Decimal(0)
    made = MigPlan(
        name=digest(nodes, ()),
        at=at,
        gpus_before=gpus,
        gpus_after=gpus,
        per_hour_before=price,
        per_hour_after=price,
        bound=price,
        gap=Decimal(0),
        nodes=nodes,
    )
    return Adopted(status=status.model_copy(update={"target": made, "proposed": None}))


def _impossible(board: GpuModel, mig: Mig) -> str | None:
    unknown = sorted(profile for profile in mig.layout if board.find_profile(profile) is None)
    if unknown:
        known = ", ".join(cut.name for cut in board.profiles)
        return f"spec.mig.layout: {board.name} has no profile {', '.join(unknown)}, but {known}"
    if place_geometry(board, tuple(sorted(mig.layout.items()))) is None:
        told = ", ".join(f"{count} x {profile}" for profile, count in sorted(mig.layout.items()))
        return f"spec.mig.layout: {told} do not fit on 1 {board.name} together; take fewer"
    return None
