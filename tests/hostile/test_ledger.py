"""Money under broken clocks, refused records and lost objects."""

from datetime import datetime, timedelta

import pytest
from typing_extensions import override

from tessera.ports import ServerDate
from tessera.reconcile.trusted_clock import TrustedClock
from tests.builders import NOW
from tests.hostile.twin import Fleet, Twins


class SteppingFleet(Fleet):
    """A fleet whose operator runs on a node with a clock that may step."""

    def __init__(self) -> None:
        self.step = timedelta()
        self._trusted = TrustedClock(
            lambda: self.at + self.step,
            self._monotonic,
            lambda: ServerDate(self.at, self._monotonic()),
        )
        super().__init__()

    def _monotonic(self) -> float:
        return (self.at - NOW).total_seconds()

    @override
    def _now(self) -> datetime:
        return self._trusted()


def add_tenant(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget("team-a", "500", "Month")
    fleet.serve("chat", "team-a", scaling={"minReplicas": 2, "maxReplicas": 6})


@pytest.mark.parametrize("step", [timedelta(days=30), -timedelta(hours=2)])
async def test_a_leader_whose_clock_steps_charges_and_scales_as_one_whose_clock_does_not(
    step: timedelta,
) -> None:
    twins = Twins(add_tenant)
    twins.hostile = stepping = SteppingFleet()
    add_tenant(stepping)

    def act(fleet: Fleet, cycle: int) -> None:
        del fleet
        stepping.step = step if cycle in (10, 11, 20) else timedelta()

    await twins.run(40, act)
    assert twins.hostile.spent("team-a") > 0
    twins.assert_equal()
