"""How tenants share the places at a provider: by weights, and all while others want less."""

from collections import Counter
from collections.abc import Mapping

# Who found no place has his share left to him for so long.
_WAITING_SECONDS = 5.0


class Shares:
    """The places at a provider that tenants have.

    Who was refused comes first for a while: until then his share is left to him by those who have
    more for their weight. Without such a tenant each takes what is free.
    """

    def __init__(self) -> None:
        self._places = Counter[str]()
        self._waits_until: dict[str, float] = {}
        self._taken_at: dict[str, float] = {}

    @property
    def taken(self) -> int:
        """Return the places that all tenants have together."""
        return self._places.total()

    def take(self, tenant: str, places: int, weights: Mapping[str, float], now: float) -> bool:
        """Give a tenant one of so many places, if one is free and no share of others."""
        free = places - self.taken - 1
        if free < max(0.0, self._shares_of_others(tenant, places, weights, now)):
            self._waits_until[tenant] = now + _WAITING_SECONDS
            return False
        self._places[tenant] += 1
        self._taken_at[tenant] = now
        return True

    def is_wanted(self, tenant: str, now: float) -> bool:
        """Return whether others than a tenant were refused a place just now."""
        return any(until > now for each, until in self._waits_until.items() if each != tenant)

    def give_back(self, tenant: str) -> None:
        """Take back a place of a tenant."""
        self._places[tenant] -= 1
        if not self._places[tenant]:
            del self._places[tenant]

    def _shares_of_others(
        self, tenant: str, places: int, weights: Mapping[str, float], now: float
    ) -> float:
        """Return what is left to tenants who wait and have less for their weight than this one."""
        waiting = [each for each, until in self._waits_until.items() if until > now]
        sharing = {tenant, *self._places, *waiting}
        total = sum(weights.get(each, 1.0) for each in sharing)

        def standing(name: str) -> tuple[float, float]:
            return self._places[name] / weights.get(name, 1.0), self._taken_at.get(name, 0.0)

        return sum(
            max(0.0, places * weights.get(each, 1.0) / total - self._places[each])
            for each in waiting
            if standing(each) < standing(tenant)
        )
