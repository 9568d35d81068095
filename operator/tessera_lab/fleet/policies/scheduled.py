"""A fleet that follows a schedule that was made beforehand."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tessera_lab.fleet.observation import Observation


class ScheduledPolicy:
    """Has as many replicas ready as a schedule says, of (moment, replicas)."""

    interval = 5.0
    scrape = 0.0

    def __init__(self, schedule: Sequence[tuple[float, int]], lead: float = 0.0) -> None:
        """Order replicas `lead` seconds before the schedule has them ready."""
        self._moments = [moment for moment, _ in schedule]
        self._replicas = [replicas for _, replicas in schedule]
        self._lead = lead

    def decide(self, observation: Observation) -> int:
        first = max(0, bisect_right(self._moments, observation.at) - 1)
        # What is due before the next decision is ordered now.
        last = bisect_left(self._moments, observation.at + self._lead + self.interval)
        return max(self._replicas[first : max(last, first + 1)])
