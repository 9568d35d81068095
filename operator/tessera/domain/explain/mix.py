"""How many replicas of a service to reserve for the load of the last days, and what that saves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.text import counted
from tessera.domain.economics.reservation import (
    LoadCurve,
    break_even_use,
    critical_reservation,
)
from tessera.domain.explain.alternatives import ServiceInFleet
from tessera.domain.money import Money
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision

# What is reserved is paid day and night.
_SHORTEST = timedelta(days=1)
# A price has 4 digits; what a limit of it rounds to has to be beyond the limit.
_PRICE_STEP = 10**5
# A share of the time just below another one.
_BELOW = 1 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservedMix:
    """A load on equal hardware that is reserved in part, at prices of a replica for an hour."""

    curve: LoadCurve
    reserved: Money
    on_demand: Money

    @property
    def best(self) -> int:
        """Return the number of reserved replicas that costs least."""
        return critical_reservation(self.curve, self.reserved.nanos, self.on_demand.nanos)

    def hourly(self, reserved: int) -> Money:
        """Return the mean cost of an hour with so many reserved replicas, used or not."""
        burst = self.curve.burst(reserved) * self.on_demand.nanos
        return Money(reserved * self.reserved.nanos + round(burst), self.reserved.currency)

    def price_for_more(self) -> tuple[Money, int] | None:
        """Return the price below which more are reserved, and how many; None if none ever are."""
        share = self.curve.share_above(self.best)
        nanos = int(share * self.on_demand.nanos) // _PRICE_STEP * _PRICE_STEP
        if not nanos:
            return None
        return self._money(nanos), critical_reservation(self.curve, share * _BELOW, 1.0)

    def price_for_fewer(self) -> tuple[Money, int] | None:
        """Return the price above which fewer are reserved, and how many; None if none are."""
        if not self.best:
            return None
        share = self.curve.share_above(self.best - 1)
        nanos = -(-int(share * self.on_demand.nanos) // _PRICE_STEP) * _PRICE_STEP
        return self._money(nanos), critical_reservation(self.curve, share, 1.0)

    def _money(self, nanos: int) -> Money:
        return Money(nanos, self.reserved.currency)


def explain_mix(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan, curve: LoadCurve | None
) -> Iterator[Decision]:
    """Yield the number of replicas to reserve; nothing while the load of a day is not known.

    Nothing either where the service may not use both reserved and on-demand pools for its hardware.
    """
    spec, choices = service_plan.service.spec, _equal_choices(service_plan)
    reserved, on_demand = (
        [choice for choice in choices if choice.offer.tier == tier]
        for tier in ("Reserved", "OnDemand")
    )
    if curve is None or curve.seconds < _SHORTEST.total_seconds():
        return
    if spec is None or not reserved or not on_demand:
        return
    placed = ServiceInFleet(snapshot=snapshot, plan=plan, service_plan=service_plan, spec=spec)
    mix = ReservedMix(curve=curve, reserved=_lowest(reserved), on_demand=_lowest(on_demand))
    has_spot = any(choice.offer.tier == "Spot" for choice in choices)
    yield _decision(placed, mix, reserved, has_spot=has_spot)


def _equal_choices(service_plan: ServicePlan) -> Sequence[HardwareChoice]:
    """Return the variants with the first one's hardware and precision; see `place`: their
    prices have one currency."""
    choices = service_plan.placement.choices
    return [
        choice
        for choice in choices
        if choice.offer.hardware == choices[0].offer.hardware
        and choice.fit.precision == choices[0].fit.precision
    ]


def _lowest(choices: Sequence[HardwareChoice]) -> Money:
    return min((choice.hourly for choice in choices), key=lambda hourly: hourly.nanos)


def _decision(
    placed: ServiceInFleet, mix: ReservedMix, reserved: Sequence[HardwareChoice], *, has_spot: bool
) -> Decision:
    names = {choice.variant for choice in reserved}
    used = sum(pod.variant in names and pod.node is not None for pod in placed.service_plan.pods)
    free = sum(max(0, placed.free_replicas(choice.offer)) for choice in reserved)
    usable, best, curve = used + free, mix.best, mix.curve
    cost, current_cost = mix.hourly(best), mix.hourly(usable)
    saving = Money(current_cost.nanos - cost.nanos, cost.currency)
    load = f"the load of the last {curve.seconds / 86_400:.1f} days"
    if best == usable:
        reason = "ReservedAsNeeded"
        message = (
            f"{load} costs least with the {_replicas(best)} that it may use now: "
            f"{cost.formatted(4)} per hour with what it needs above them on demand"
        )
    else:
        reason = "ReserveMore" if best > usable else "ReserveFewer"
        message = (
            f"{load} costs least with {_replicas(best)}: {cost.formatted(4)} per hour with what it "
            f"needs above them on demand, {saving.formatted(4)} less than with the {usable} that "
            "it may use now"
        )
    numbers = [
        ("replicas needed", f"{curve.mean:.2f} on average, {curve.peak} at most"),
        (
            "price per replica",
            f"{mix.reserved.formatted(4)} per hour reserved, {mix.on_demand.formatted(4)} on "
            "demand",
        ),
        (
            "reserved now",
            f"{_replicas(usable)}, {used} in use and {free} free, which others may use: "
            f"{current_cost.formatted(4)} per hour",
        ),
        ("recommended", f"{_replicas(best)}: {cost.formatted(4)} per hour"),
    ]
    if has_spot:
        numbers.append(("not counted", "what Spot nodes take above minReplicas"))
    return Decision(
        topic="mix",
        reason=reason,
        message=message,
        numbers=tuple(numbers),
        would_change=tuple(_changes(mix)),
    )


def _changes(mix: ReservedMix) -> Iterator[str]:
    """Yield the load and the prices at which another number costs less."""
    best, curve, reserved = mix.best, mix.curve, mix.reserved.formatted(4)
    share = break_even_use(mix.reserved.nanos, mix.on_demand.nanos)
    if share < 1:
        yield (
            f"a load that needs {counted(best + 1, 'replica')} or more for over {share:.1%} of the "
            f"time (now {curve.share_above(best):.1%}) would pay for 1 more reserved replica"
        )
    if (more := mix.price_for_more()) is not None:
        price, count = more
        yield (
            f"a reserved price below {price.formatted(4)} per replica and hour (now {reserved}) "
            f"would pay for {_replicas(count)}"
        )
    if (fewer := mix.price_for_fewer()) is not None:
        price, count = fewer
        yield (
            f"a reserved price above {price.formatted(4)} per replica and hour (now {reserved}) "
            f"would pay for {_replicas(count)}"
        )


def _replicas(count: int) -> str:
    return counted(count, "reserved replica")
