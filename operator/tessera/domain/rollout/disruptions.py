"""How many healthy replicas of a service may go, in the words of a PodDisruptionBudget.

A count of replicas of all variants and templates, taken once a cycle: whatever takes a replica
takes it here. One more may be away for a rollout in place, for a pool whose devices its successor
needs, or for a stalled engine, while no other one of the floor is.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from tessera.domain.observed.snapshot import Pod, Ref
from tessera.domain.rollout.rollout_floor import RolloutFloor


class Disruptions(NamedTuple):
    """The healthy replicas of a service, and how many of them stay."""

    healthy: frozenset[Ref] = frozenset()
    """Those that take requests and do not go by themselves."""
    floor: int = 0
    """Replicas that should always be healthy."""

    @property
    def desired_healthy(self) -> int:
        """Return how many of the healthy ones stay."""
        return min(self.floor, len(self.healthy))

    @property
    def allowed(self) -> int:
        """Return how many of the healthy ones may go."""
        return len(self.healthy) - self.desired_healthy

    def allows_replacement(self) -> bool:
        """Return whether one may leave before its successor is ready: none of the floor is away."""
        return len(self.healthy) >= self.floor

    def within(self, floor: RolloutFloor | None) -> "Disruptions":
        """Return them with the floor that a rollout keeps, which may have begun below."""
        return self if floor is None else self._replace(floor=floor.within(self.floor))


NO_DISRUPTIONS = Disruptions()


def disruptions_of(pods: Iterable[Pod], disrupted: Collection[Ref], floor: int) -> Disruptions:
    """Return the healthy replicas of a service of which `floor` stay.

    Those on their way out do not count: draining ones, and `disrupted` ones, whose nodes end.
    """
    healthy = frozenset(
        pod.ref
        for pod in pods
        if pod.takes_requests and pod.draining_since is None and pod.ref not in disrupted
    )
    return Disruptions(healthy, floor)
