"""How tenants share what a provider takes: by weights, and all of it while others want less."""

from collections import defaultdict
from collections.abc import Mapping


class Shares:
    """What tenants have of a capacity: places, or requests and tokens of a minute.

    Who was refused comes first for a while: until then his share is left to him by those who have
    more for their weight. Without such a tenant anybody takes what is free.
    """

    def __init__(self, patience_seconds: float) -> None:
        """Remember a refusal for so long."""
        self._patience_seconds = patience_seconds
        self._used = defaultdict[str, int](int)
        self._waits_until: dict[str, float] = {}
        self._taken_at: dict[str, float] = {}

    @property
    def used(self) -> int:
        """Return what all tenants have together."""
        return sum(self._used.values())

    def take(
        self, tenant: str, amount: int, capacity: int, weights: Mapping[str, float], now: float
    ) -> bool:
        """Give a tenant so much of the capacity, if that is free and no share of others.

        More than the whole capacity is given where nothing is used, since it would never fit.
        """
        used = self.used
        free = capacity - used - amount
        fits = free >= 0 or not used
        if not fits or self._shares_of_others(tenant, capacity, weights, now) > max(0, free):
            self._waits_until[tenant] = now + self._patience_seconds
            return False
        self._used[tenant] += amount
        self._taken_at[tenant] = now
        return True

    def give_back(self, tenant: str, amount: int) -> None:
        """Take back what a tenant has no more."""
        self._used[tenant] -= amount
        if not self._used[tenant]:
            del self._used[tenant]

    def clear(self) -> None:
        """Take back all: a minute begins."""
        self._used.clear()

    def _shares_of_others(
        self, tenant: str, capacity: int, weights: Mapping[str, float], now: float
    ) -> float:
        """Return what is left to tenants who wait and have less for their weight than this one."""
        waiting = [each for each, until in self._waits_until.items() if until > now]
        sharing = {tenant, *self._used, *waiting}
        total = sum(weights.get(each, 1.0) for each in sharing)

        def standing(name: str) -> tuple[float, float]:
            return self._used.get(name, 0) / weights.get(name, 1.0), self._taken_at.get(name, 0.0)

        return sum(
            max(0.0, capacity * weights.get(each, 1.0) / total - self._used.get(each, 0))
            for each in waiting
            if standing(each) < standing(tenant)
        )
