"""When a service changes its instance type: once the other one would have saved the move.

How long a load stays is not known. So what the other type would have saved is summed over the
recorded spans, and forgotten where it falls below nothing; a change comes once the sum exceeds what
the move costs. Each change is so paid by what waiting for it cost, as when skis are rented until
they would have been bought, and a load that jumps between two types changes none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.domain.instance_types.rank import TypeCost, is_long_enough, rank_types
from tessera.domain.observed.load_history import SPAN, LoadHistory
from tessera.domain.placement.candidates import HardwareChoice

# A type changes at most so often.
REST = timedelta(days=1)


class Saving(NamedTuple):
    """What another type would have saved."""

    nanos: int
    """In nano-units; 0 for nothing."""
    since: datetime
    """Since when it would have saved without a loss in between."""


def saving_of(
    running: TypeCost, other: TypeCost, history: LoadHistory, changed_at: datetime | None
) -> Saving:
    """Return what another type would have saved since the last change."""
    saved, since = 0, history.read_at
    for span, own, others in zip(
        history.spans, running.span_nanos, other.span_nanos, strict=True
    ):
        if changed_at is not None and span.end - SPAN < changed_at:
            continue
        if saved <= 0:
            saved, since = 0, span.end - SPAN
        saved += own - others
    return Saving(saved, since) if saved > 0 else Saving(0, history.read_at)


def move_nanos(running: TypeCost, other: TypeCost, start: timedelta, drain: timedelta) -> int:
    """Return what a move costs: both types are paid while one starts, and the other drains."""
    stopped, started = (cost.pods[-1] * cost.choice.hourly.nanos for cost in (running, other))
    hour = timedelta(hours=1)
    return int(started * (start / hour) + stopped * (drain / hour))


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeDecision:
    """What a recorded load says of the instance type of a service that runs."""

    ranked: tuple[TypeCost, ...] = ()
    """The cheapest first; empty where too little is recorded, and nothing is decided."""
    change_to: HardwareChoice | None = None
    """The type to change to now."""
    saving: Saving | None = None
    """What the cheapest type would have saved, where another one runs."""


def decide_type(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    choices: Sequence[HardwareChoice],
    running: str,
    history: LoadHistory | None,
    changed_at: datetime | None,
    start: timedelta,
    slowness: Mapping[str, float],
) -> TypeDecision:
    """Return the instance type by the load, among `choices` of one pool and precision.

    `running` is the variant that runs since `changed_at`, and one of the choices. `start` is the
    expected time until a replica is ready, `slowness` the measured time of a step divided by the
    predicted one, by variant.
    """
    if history is None or not is_long_enough(history):
        return TypeDecision()
    ranked = rank_types(spec, shape, choices, history, slowness)
    own = next(cost for cost in ranked if cost.choice.variant == running)
    if ranked[0] is own:
        return TypeDecision(ranked=ranked)
    better = better_type(own, ranked, history, changed_at, start, spec.drain.timeout)
    return TypeDecision(
        ranked=ranked,
        change_to=better.choice if better is not None else None,
        saving=saving_of(own, ranked[0], history, changed_at),
    )


def better_type(
    running: TypeCost,
    ranked: Sequence[TypeCost],
    history: LoadHistory,
    changed_at: datetime | None,
    start: timedelta,
    drain: timedelta,
) -> TypeCost | None:
    """Return the type to change to; None to stay."""
    best = ranked[0]
    if best.choice.variant == running.choice.variant:
        return None
    if changed_at is not None and history.read_at - changed_at < REST:
        return None
    if running.misses_slo and not best.misses_slo:
        return best
    saving = saving_of(running, best, history, changed_at)
    return best if saving.nanos > move_nanos(running, best, start, drain) else None
