"""What a replica of a variant costs beyond what is paid anyway, and when a cheaper one replaces it.

See docs/decisions/order-of-tiers.md.
"""

from datetime import timedelta
from fractions import Fraction
from typing import NamedTuple

from tessera.domain.placement.placement import HardwareChoice

# The price of anything that is paid only while it is used is above all that is paid anyway.
_CASH_BITS = 64
# A move that pays later than this is none.
_LONGEST_WAIT = timedelta(days=365)


def cash_of(choice: HardwareChoice) -> int:
    """Return the nano-units per hour that a replica costs beyond what is paid anyway."""
    return 0 if choice.offer.tier == "Reserved" else choice.offer.comparison_price.nanos


def weight_of(choice: HardwareChoice) -> int:
    """Return what variants are compared by: what is paid only while used, then all that is billed.

    As one number, so that sums compare too.
    """
    return cash_of(choice) << _CASH_BITS or choice.offer.comparison_price.nanos


def capacity_of(choice: HardwareChoice) -> int:
    """Return what a replica serves, in thousandths of a token per second: sums are exact."""
    return max(1, round(1000 * choice.fit.limits.tokens_per_second))


def by_cost(choice: HardwareChoice) -> tuple[Fraction, str]:
    """Return the sort key of variants: the first one gets what is missing, if it has room."""
    return Fraction(weight_of(choice), capacity_of(choice)), choice.variant


class PossibleMove(NamedTuple):
    """Replicas of a variant whose capacity costs less on another one."""

    stopped: int
    started: int
    saving: int
    """Nano-units per hour."""
    wait: timedelta
    """For how long there must have been room."""


def exchange(capacity: int, replicas: int, other: int, spare: int) -> tuple[int, int]:
    """Return how many replicas of a variant stop, and how many of another one replace them.

    The `spare` capacity of all together needs no replacement.
    """
    if other < capacity:
        return 1, -(-(capacity - spare) // other)
    return min((spare + other) // capacity, max(1, replicas)), 1


def possible_move(
    source: HardwareChoice, replicas: int, to: HardwareChoice, spare: int, start: timedelta
) -> PossibleMove | None:
    """Return the smallest move of replicas of a variant to another one; None if it never pays.

    `start` is the expected time until a replica is ready there.
    """
    stopped, started = exchange(capacity_of(source), replicas, capacity_of(to), spare)
    before, after = stopped * cash_of(source), started * cash_of(to)
    if before <= after:
        return None
    seconds = start.total_seconds() * (before + after) / (before - after)
    if seconds > _LONGEST_WAIT.total_seconds():
        return None
    return PossibleMove(stopped, started, before - after, timedelta(seconds=seconds))
