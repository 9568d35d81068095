"""The clock that decisions use: of three sources, two that agree."""

from datetime import timedelta

import pytest

from tessera.domain.budget.metering import MAX_CLOCK_ERROR
from tessera.ports import ClockReading
from tessera.reconcile.trusted_clock import TrustedClock
from tests.builders import NOW

MONTH = timedelta(days=30)


class Clocks:
    """A wall clock, an API server and a monotonic clock, each of which may step."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.wall_error = timedelta()
        self.server_error: timedelta | None = timedelta()
        self.trusted = TrustedClock(
            lambda: NOW + timedelta(seconds=self.elapsed) + self.wall_error,
            lambda: 5000 + self.elapsed,
            self._server_date,
        )

    def _server_date(self) -> ClockReading | None:
        if self.server_error is None:
            return None
        at = NOW + timedelta(seconds=int(self.elapsed)) + self.server_error
        return ClockReading(at, 5000 + self.elapsed)

    def error_after(self, seconds: float = 5.5) -> timedelta:
        """Return by how much the believed time is off after some seconds."""
        self.elapsed += seconds
        return self.trusted() - NOW - timedelta(seconds=self.elapsed)


@pytest.fixture
def clocks() -> Clocks:
    running = Clocks()
    assert not running.error_after()
    return running


@pytest.mark.parametrize("step", [MONTH, -MONTH, timedelta(minutes=3)])
def test_a_step_of_the_wall_clock_is_not_believed_and_time_goes_on(
    clocks: Clocks, step: timedelta
) -> None:
    clocks.wall_error = step
    assert [clocks.error_after() for _ in range(3)] == [timedelta()] * 3
    assert clocks.trusted.error == step
    clocks.wall_error = timedelta()
    assert not clocks.error_after()
    assert not clocks.trusted.error


def test_many_small_steps_do_not_add_up(clocks: Clocks) -> None:
    errors = []
    for _ in range(60):
        clocks.wall_error += timedelta(seconds=60)
        errors.append(clocks.error_after())
    assert max(errors) < 2 * MAX_CLOCK_ERROR


def test_a_step_of_the_api_server_is_not_believed(clocks: Clocks) -> None:
    clocks.server_error = MONTH
    assert not clocks.error_after()
    assert not clocks.trusted.error


def test_a_step_of_both_in_different_ways_is_not_believed(clocks: Clocks) -> None:
    clocks.server_error, clocks.wall_error = MONTH, -MONTH
    assert not clocks.error_after()


def test_a_suspended_machine_goes_on_at_the_time_of_wall_clock_and_api_server(
    clocks: Clocks,
) -> None:
    clocks.wall_error = clocks.server_error = timedelta(hours=8)
    assert clocks.error_after() == timedelta(hours=8)


def test_a_process_that_starts_on_a_node_with_a_wrong_clock_asks_the_api_server() -> None:
    clocks = Clocks()
    clocks.wall_error = MONTH
    assert abs(clocks.error_after()) < timedelta(seconds=1)
    assert clocks.trusted.error > timedelta(days=29)
    assert abs(clocks.error_after()) < timedelta(seconds=1)


def test_before_the_first_response_the_wall_clock_is_all_there_is() -> None:
    clocks = Clocks()
    clocks.server_error = None
    assert not clocks.error_after()
