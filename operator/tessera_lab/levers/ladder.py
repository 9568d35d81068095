"""The ladder: each lever alone, all in order, and what their product would have promised."""

import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from tessera.domain.routes.savings import Blend
from tessera_lab.engine.setup import EngineSetup
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.lever import LeverId, levers, source_orders, stacked_residual
from tessera_lab.levers.month import Measure, Month, month, routing_blends
from tessera_lab.levers.replica_rate import ReplicaRate, replica_rate
from tessera_lab.levers.setups import LeverUnavailableError, Obstacle

# A lever that changes a bill by less does nothing.
LEAST_CHANGE = 0.001
# What such a lever saves follows from a share that is not measured.
_GUESSED = {LeverId.ROUTING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One lever of a ladder; factors above 1 save, and are None where it cannot be computed."""

    lever: LeverId
    month: Month
    """After this rung."""
    alone: float | None = None
    """Cost of the baseline over the cost with this lever."""
    here: float | None = None
    """The same on top of the rungs before."""
    last: float | None = None
    """Cost of the whole stack without it over the cost with it; None where it is left out."""
    used: bool = False
    """Whether it is part of the stack: it costs no more there, or the SLO is kept by it."""
    obstacle: Obstacle | None = None
    note: str = ""
    """What is remarkable, such as why it is left out or cannot be computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStep:
    """A lever in the order of a source, and the month after it."""

    lever: LeverId
    month: Month


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """All levers of a case."""

    baseline: Month
    rungs: tuple[Rung, ...]
    today: Month
    """With the levers of the stack that Tessera has today, without routing: its share is a guess,
    and small models answer less well."""
    orders: Mapping[str, tuple[OrderStep, ...]]
    """Orders of the sources by name, without what cannot be computed."""

    @property
    def stack(self) -> Month:
        """Return the month with all levers that are used."""
        return self.rungs[-1].month

    @property
    def reached(self) -> float:
        """Return how many times less the stack costs."""
        return self.baseline.usd / self.stack.usd

    @property
    def product(self) -> float:
        """Return what the levers of the stack promise if their single savings multiply."""
        factors = (rung.alone for rung in self.rungs if rung.used)
        return 1 / stacked_residual(1 - 1 / factor for factor in factors if factor)

    @property
    def reached_today(self) -> float:
        return self.baseline.usd / self.today.usd


class MonthlyCosts:
    """Months of one case, for which each setup is measured once."""

    def __init__(self, case: ServiceCase, measure: Measure | None = None) -> None:
        self.case = case
        self._measure = functools.cache(measure or self._played)

    def month(self, active: Set[LeverId]) -> Month:
        """Return the month; raise LeverUnavailableError where a lever cannot be computed."""
        return month(self.case, active, self._measure)

    def routing_blends(self, active: Set[LeverId]) -> tuple[Blend, ...]:
        """Return what shares at the small model make of both prices; none without one."""
        try:
            return routing_blends(self.case, active - {LeverId.ROUTING}, self._measure)
        except LeverUnavailableError:
            return ()

    def _played(self, setup: EngineSetup) -> ReplicaRate:
        return replica_rate(setup, self.case.load, self.case.objectives)


def climb(costs: MonthlyCosts) -> Ladder:
    """Return the ladder from plain vLLM up."""
    baseline = costs.month(frozenset())
    rungs, active, current = list[Rung](), frozenset[LeverId](), baseline
    for lever in LeverId:
        rung = _rung(costs, lever, active, current)
        rungs.append(rung)
        if rung.used:
            active, current = active | {lever}, rung.month
    orders = {order.id: tuple(_steps(costs, order.levers)) for order in source_orders()}
    return Ladder(
        baseline=baseline,
        rungs=tuple(replace(rung, last=_last(costs, rung, active, current)) for rung in rungs),
        today=costs.month(frozenset(each for each in active - _GUESSED if levers()[each].offered)),
        orders=orders,
    )


def _rung(costs: MonthlyCosts, lever: LeverId, active: Set[LeverId], current: Month) -> Rung:
    try:
        alone = costs.month(frozenset()).usd / costs.month({lever}).usd
        candidate = costs.month(active | {lever})
    except LeverUnavailableError as error:
        return Rung(lever=lever, month=current, obstacle=error.obstacle, note=str(error))
    here, note, used = current.usd / candidate.usd, "", True
    if current.keeps_slo and not candidate.keeps_slo:
        note, used = "it would miss the SLO here", False
    elif candidate.keeps_slo and not current.keeps_slo:
        note = "the SLO is kept from here on"
    elif here < 1 - LEAST_CHANGE:
        note, used = f"it costs {1 / here - 1:.0%} more here", False
    elif here < 1 + LEAST_CHANGE:
        note = "it changes nothing here"
    return Rung(
        lever=lever,
        alone=alone,
        here=here,
        month=candidate if used else current,
        used=used,
        note=note,
    )


def _last(costs: MonthlyCosts, rung: Rung, active: Set[LeverId], current: Month) -> float | None:
    """Return what the stack would cost without a lever of it, over what it costs."""
    if not rung.used:
        return None
    try:
        return costs.month(active - {rung.lever}).usd / current.usd
    except LeverUnavailableError:
        return None


def _steps(costs: MonthlyCosts, order: Sequence[LeverId]) -> Iterator[OrderStep]:
    active = frozenset[LeverId]()
    for lever in order:
        try:
            step = OrderStep(lever=lever, month=costs.month(active | {lever}))
        except LeverUnavailableError:
            continue
        active |= {lever}
        yield step
