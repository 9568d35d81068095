"""How tenants share the limits of a provider: by weights, and all while others want less."""

from collections.abc import Mapping
from math import exp

# How long what a tenant needed is left to it, from when it may ask again.
_WAITING_SECONDS = 5.0
# Amount of a limit below which a tenant counts as one that took nothing.
_FORGOTTEN = 0.5


class LimitShares:
    """What tenants took of one limit, and what those need who were refused.

    Who was refused comes first for a while: what it needs is left to it by those who took more for
    their weight. Without such a tenant each takes what is left.
    """

    def __init__(self, period_seconds: int) -> None:
        """Take the period of the limit; 0 for concurrent requests."""
        self._period = period_seconds
        self._taken: dict[str, tuple[float, float]] = {}
        """What each tenant took, and when that was counted."""
        self._waits: dict[str, tuple[int, float]] = {}
        """What each tenant needs, and until when it is left to it."""

    def take(self, tenant: str, amount: int, now: float) -> None:
        """Count what a tenant took."""
        self._taken[tenant] = self._taken_by(tenant, now) + amount, now

    def give_back(self, tenant: str, amount: int) -> None:
        """Count less of a tenant; below 0 what it took beyond its reservation."""
        taken, at = self._taken.get(tenant, (0.0, 0.0))
        self._taken[tenant] = max(0.0, taken - amount), at

    def wait(self, tenant: str, amount: int, retry_seconds: float, now: float) -> None:
        """Leave to a tenant what it needs until it may ask again, and a while longer."""
        self._waits[tenant] = amount, now + retry_seconds + _WAITING_SECONDS

    def needed_by_others(self, tenant: str, weights: Mapping[str, float], now: float) -> int:
        """Return what tenants wait for that took less for their weight than this one."""

        def standing(name: str) -> float:
            return self._taken_by(name, now) / weights.get(name, 1.0)

        own = standing(tenant)
        return sum(
            amount
            for each, (amount, until) in self._waits.items()
            if until > now and standing(each) < own
        )

    def is_idle(self, now: float) -> bool:
        """Return whether all would go on alike without what is known here."""
        return all(until <= now for _, until in self._waits.values()) and all(
            self._taken_by(tenant, now) < _FORGOTTEN for tenant in self._taken
        )

    def _taken_by(self, tenant: str, now: float) -> float:
        """Return what a tenant took within about a period; of concurrent requests those now."""
        taken, at = self._taken.get(tenant, (0.0, now))
        return taken * exp((at - now) / self._period) if self._period else taken
