import pytest

from tessera_lab.sim.runner import StepPacer


def test_a_late_step_is_made_up_for_by_the_next_waits() -> None:
    pace = StepPacer()
    assert pace.begin_step(0.010, 100.0) == pytest.approx(0.010)
    pace.end_step(100.012)
    assert pace.begin_step(0.010, 100.012) == pytest.approx(0.008)
    pace.end_step(100.020)
    assert pace.max_late_seconds == pytest.approx(0.002)


def test_a_machine_that_is_too_slow_does_not_wait_and_says_how_far_it_is_behind() -> None:
    pace, now = StepPacer(), 0.0
    for _ in range(100):
        pace.begin_step(0.010, now)
        now += 0.015
        pace.end_step(now)
    assert pace.begin_step(0.010, now) == 0
    pace.end_step(now + 0.015)
    pace.pause()
    assert pace.busy_seconds(now) == pytest.approx(1.01)
    assert pace.max_late_seconds == pace.lost_seconds == pytest.approx(101 * 0.005)


def test_after_a_pause_time_starts_again() -> None:
    pace = StepPacer()
    pace.begin_step(0.010, 0.0)
    pace.end_step(0.011)
    pace.pause()
    assert pace.begin_step(0.010, 50.0) == pytest.approx(0.010)
    pace.end_step(50.010)
    assert pace.lost_seconds == pytest.approx(0.001)


def test_of_a_long_step_only_the_part_that_has_passed_counts_as_work() -> None:
    pace = StepPacer()
    pace.begin_step(2.0, 10.0)
    assert pace.busy_seconds(10.5) == pytest.approx(0.5)
    pace.end_step(12.0)
    pace.pause()
    assert pace.busy_seconds(30.0) == 2.0
