"""When a service changes its instance type: once the other one would have saved the move.

How long a load stays is not known. So what the other type would have saved is summed over the
recorded spans, and forgotten where it falls below nothing; a change comes once the sum exceeds what
the move costs. Each move so costs less than waiting for it did, as when skis are rented until they
would have been bought: a load that jumps between two types at most doubles what it loses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.api.text import counted
from tessera.domain.instance_types.rank import TypeCost, is_long_enough, rank_types
from tessera.domain.money import Money
from tessera.domain.observed.load_history import SPAN, LoadHistory
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.sizing.scheduler_limits import longest_reading

# A type changes at most so often.
REST = timedelta(days=1)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningType:
    """The instance type that a service runs on, and how fast engines are."""

    variant: str
    since: datetime | None = None
    """Since when it is the type of the service; None where that is not known."""
    start: timedelta = timedelta()
    """Expected time until a replica is ready."""
    slowness: Mapping[str, float] = field(default_factory=dict)
    """Measured time of a step divided by the predicted one, by variant."""


class Saving(NamedTuple):
    """What a type would have saved against another one, which may be nothing."""

    nanos: int
    """In nano-units; 0 for nothing."""
    since: datetime
    """Since when it would have saved without a loss in between."""


def saving_of(
    dearer: TypeCost, cheaper: TypeCost, history: LoadHistory, since: datetime | None
) -> Saving:
    """Return what the cheaper type would have saved in the spans that began since a moment."""
    saved, saved_since = 0, history.read_at
    for span, own, others in zip(history.spans, dearer.span_nanos, cheaper.span_nanos, strict=True):
        begin = span.end - SPAN
        if since is not None and begin < since:
            continue
        if saved <= 0:
            saved, saved_since = 0, begin
        saved += own - others
    return Saving(saved, saved_since) if saved > 0 else Saving(0, history.read_at)


def move_nanos(
    spec: InferenceServiceSpec,
    running: TypeCost,
    other: TypeCost,
    history: LoadHistory,
    start: timedelta,
) -> int:
    """Return what a move costs now, in nano-units.

    Both types are paid while one starts and the other drains, and what prefix caches hold is read
    again.
    """
    fit = other.choice.fit
    read_again = longest_reading(
        round(history.spans[-1].cached_share * fit.memory.kv_tokens), spec.slo.itl_p95, fit.limits
    )
    stopped, started = (cost.pods[-1] * cost.choice.hourly.nanos for cost in (running, other))
    return int(started * ((start + read_again) / _HOUR) + stopped * (spec.drain.timeout / _HOUR))


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeDecision:
    """What a recorded load says of the instance type of a service that runs."""

    ranked: Sequence[TypeCost] = ()
    """The cheapest first; empty where nothing is decided, as where too little is recorded."""
    change_to: HardwareChoice | None = None
    """The type to change to now."""
    saving: Saving | None = None
    """What the best other type would have saved, where it is cheaper than the one that runs."""
    message: str = ""
    """The choice, what the second best costs, and since when; empty where nothing is decided."""


def decide_type(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    choices: Sequence[HardwareChoice],
    history: LoadHistory | None,
    running: RunningType,
) -> TypeDecision:
    """Return the instance type by the load, among `choices` of one pool and precision.

    Types that are billed in another currency than the one that runs are left out. Nothing is
    decided where there is no other, and where that one is not among the choices, as when its pool
    is gone.
    """
    current = next((each for each in choices if each.variant == running.variant), None)
    if current is None or history is None or not is_long_enough(history):
        return TypeDecision()
    currency = current.hourly.currency
    comparable = [each for each in choices if each.hourly.currency == currency]
    if len(comparable) < 2:
        return TypeDecision()
    ranked = rank_types(spec, shape, comparable, history, running.slowness)
    own = next(cost for cost in ranked if cost.choice.variant == running.variant)
    # Of types that miss the SLO, the cheapest may be the one that serves least.
    better = [
        cost
        for cost in ranked[: ranked.index(own)]
        if not cost.misses_slo and _keeps_capacity(own, cost)
    ]
    if not better:
        return TypeDecision(ranked=ranked, message=_kept_message(own, ranked, history))
    return _with_change(spec, ranked, own, better[0], history, running)


def _with_change(
    spec: InferenceServiceSpec,
    ranked: Sequence[TypeCost],
    own: TypeCost,
    best: TypeCost,
    history: LoadHistory,
    running: RunningType,
) -> TypeDecision:
    """Return the change to a type that is cheaper, or why it waits."""
    currency, saving = own.choice.hourly.currency, saving_of(own, best, history, running.since)
    move = Money(move_nanos(spec, own, best, history, running.start), currency)
    saved = f"it would have saved {Money(saving.nanos, currency)}{_since(saving, history)}"
    change_to: HardwareChoice | None = best.choice
    if running.since is not None and history.read_at - running.since < REST:
        change_to, why = None, f", and a change waits until {moment_text(running.since + REST)}"
    elif own.misses_slo and not best.misses_slo:
        why = f", and {own.choice.variant} misses spec.slo"
    elif saving.nanos > move.nanos:
        why = f": {saved}, more than the {move} of a move"
    else:
        change_to, why = None, f": {saved}, and a move costs {move}"
        if not saving.nanos:
            why = ", but of late it would have saved nothing"
    message = f"{_daily(own, history)}; {best.choice.variant} {_would_cost(best)}{why}"
    return TypeDecision(ranked=ranked, change_to=change_to, saving=saving, message=message)


def _keeps_capacity(running: TypeCost, other: TypeCost) -> bool:
    """Return whether one lost pod never takes all capacity where it takes a part of what runs."""
    return all(pods > 1 or own <= 1 for own, pods in zip(running.pods, other.pods, strict=True))


def _kept_message(own: TypeCost, ranked: Sequence[TypeCost], history: LoadHistory) -> str:
    """Return why a type stays: it is the cheapest, or one lost pod of others takes all capacity."""
    message = _daily(own, history)
    if ranked[0] is not own:
        cheapest = ranked[0]
        if cheapest.misses_slo:
            return f"{message}; it stays, since every type misses spec.slo"
        return (
            f"{message}; {cheapest.choice.variant} {_would_cost(cheapest)}, but one lost replica "
            "would take all capacity at times"
        )
    second = ranked[1]
    if second.misses_slo and not own.misses_slo:
        return f"{message}; {second.choice.variant} would miss spec.slo"
    saving = saving_of(second, own, history, None)
    since = _since(saving, history) if saving.nanos else ""
    return f"{message}, the least{since}; {second.choice.variant} {_would_cost(second)}"


def _daily(cost: TypeCost, history: LoadHistory) -> str:
    """Return what the type that runs costs, and for which load."""
    hours = len(history.spans) * SPAN // _HOUR
    spans = counted(hours, "hour") if hours < 48 else counted(hours // 24, "day")
    return f"{cost.choice.variant} costs {cost.daily} a day for the load of {spans}"


def _would_cost(cost: TypeCost) -> str:
    return f"would cost {cost.daily}"


def _since(saving: Saving, history: LoadHistory) -> str:
    """Return since when a type saves; empty for all of the recorded load, which moves on."""
    is_all = saving.since <= history.spans[0].end - SPAN
    return "" if is_all else f" since {moment_text(saving.since)}"


def moment_text(moment: datetime) -> str:
    """Return a moment as sentences on types have it."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
