"""What a replica of a variant costs beyond what is paid anyway, and when a cheaper one replaces it.

See docs/decisions/order-of-tiers.md.
"""

from collections.abc import Callable, Iterable
from datetime import timedelta
from fractions import Fraction
from typing import NamedTuple

from tessera.domain.money import Money
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.cover import Need, sum_of

# The price of anything that is paid only while it is used is above all that is paid anyway.
_CASH_BITS = 64
# Clouds give a notice of 15 s to 2 minutes (S136 of the catalogue).
NOTICE = timedelta(minutes=2)
# A node that serves for less than a hundredth of its time is as good as none.
_MOST_WASTED = Fraction(99, 100)
# A move that pays later than this is none.
_LONGEST_WAIT = timedelta(days=365)


def effective_price(choice: HardwareChoice, start: timedelta) -> Money:
    """Return the price per hour of a replica that serves: more than billed where nodes are taken.

    Each preemption wastes the start of a replacement, with that of its node, and the notice, when
    both are paid and the first takes no more requests. So of each hour is wasted preemptions per
    hour x (start + notice), and F13 of the catalogue gives price / (1 - wasted share). `start` is
    the expected time until a replica is ready on a node.
    """
    offer = choice.offer
    if not offer.preemptions_per_hour:
        return offer.comparison_price
    if offer.startable is not None:
        start += offer.startable.expected_start
    hours = Fraction(int((start + NOTICE).total_seconds()), 3600)
    wasted = min(Fraction(offer.preemptions_per_hour) * hours, _MOST_WASTED)
    price = offer.comparison_price
    return Money(round(price.nanos / (1 - wasted)), price.currency)


def price_text(choice: HardwareChoice, start: timedelta) -> str:
    """Return the price of a replica, with what it is compared by if nodes are taken."""
    text, rate = f"{choice.hourly} per hour each", choice.offer.preemptions_per_hour
    if not rate:
        return text
    effective = effective_price(choice, start)
    return f"{text}, which count as {effective} with {rate} preemptions per node and hour"


def cash_of(choice: HardwareChoice, start: timedelta) -> int:
    """Return the nano-units per hour that a replica costs beyond what is paid anyway."""
    return 0 if choice.offer.tier == "Reserved" else effective_price(choice, start).nanos


def weight_of(choice: HardwareChoice, start: timedelta) -> int:
    """Return what variants are compared by: what is paid only while used, then all that is billed.

    As one number, so that sums compare too.
    """
    return cash_of(choice, start) << _CASH_BITS or choice.offer.comparison_price.nanos


def capacity_of(choice: HardwareChoice) -> int:
    """Return what a replica serves, in thousandths of a token per second: sums are exact."""
    return max(1, round(1000 * choice.fit.limits.tokens_per_second))


def served_by(replicas: Iterable[tuple[HardwareChoice, int]]) -> Need:
    """Return what so many replicas of each variant have together."""
    return sum_of(
        (capacity_of(choice), choice.offer.tier != "Spot", count) for choice, count in replicas
    )


def by_cost(choice: HardwareChoice, start: timedelta) -> tuple[Fraction, str]:
    """Return the sort key of variants: the first one gets what is missing, if it has room."""
    return Fraction(weight_of(choice, start), capacity_of(choice)), choice.variant


class PossibleMove(NamedTuple):
    """Replicas of a variant whose capacity costs less on another one."""

    stopped: int
    started: int
    saving: int
    """Nano-units per hour."""
    wait: timedelta
    """For how long there must have been room."""


def _exchange(capacity: int, replicas: int, other: int, spare: Need) -> tuple[int, int]:
    """Return how many replicas of a variant stop, and how many of another one replace them.

    What is `spare` of all together needs no replacement.
    """
    if other < capacity:
        return 1, max(1, -(-(capacity - spare.capacity) // other))
    stopped = min((spare.capacity + other) // capacity, 1 + spare.pods)
    return min(stopped, max(1, replicas)), 1


def possible_move(
    source: HardwareChoice,
    replicas: int,
    to: HardwareChoice,
    spare: Need,
    start: timedelta,
    cash: Callable[[HardwareChoice], int],
) -> PossibleMove | None:
    """Return the smallest move of replicas of a variant to another one; None if it never pays.

    `start` is the expected time until a replica is ready there, `cash` what one costs per hour.
    """
    stopped, started = _exchange(capacity_of(source), replicas, capacity_of(to), spare)
    before, after = stopped * cash(source), started * cash(to)
    if before <= after:
        return None
    seconds = start.total_seconds() * (before + after) / (before - after)
    if seconds > _LONGEST_WAIT.total_seconds():
        return None
    return PossibleMove(stopped, started, before - after, timedelta(seconds=seconds))
