"""How slow steps are, by the devices of replicas or by their steps alone."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.domain.observed.snapshot import STEP_SECONDS, SpeedReading, StepReading
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.scaling.policies.capacity.step_speed import StepSpeed, step_speed
from tessera.domain.sizing.predicted_steps import predicted_steps
from tests.builders import a_service, a_snapshot, a_speed_reading, compute_service_plan

LOAD = a_speed_reading()
SEQUENCES, PREFILL_TOKENS = 8.0, 32.0


def a_choice() -> HardwareChoice:
    choice = compute_service_plan(a_snapshot(a_service())).choice
    assert choice is not None
    return choice


def a_replica(times: float, activity: float | None = 0.8) -> StepReading:
    """Return what a replica did whose steps take so many times as long as predicted."""
    predicted = predicted_steps(a_choice().fit, LOAD, SEQUENCES, PREFILL_TOKENS)
    assert predicted is not None
    share = predicted.busy_share if activity is None else activity
    return StepReading(
        steps=share * STEP_SECONDS / (predicted.mean * times),
        sequences=SEQUENCES,
        prefill_tokens=PREFILL_TOKENS,
        activity=activity,
        is_busy=True,
    )


def speed_of(*replicas: StepReading, load: SpeedReading = LOAD) -> StepSpeed | None:
    return step_speed(a_choice().fit, load, replicas)


@pytest.mark.parametrize("times", [0.7, 1.0, 1.5, 2.0])
@pytest.mark.parametrize(
    ("activity", "source"),
    [(0.4, "DeviceActivity"), (1.0, "DeviceActivity"), (None, "EngineSteps")],
)
def test_steps_are_as_slow_as_their_seconds_of_activity(
    times: float, activity: float | None, source: str
) -> None:
    speed = speed_of(a_replica(times, activity))
    assert speed is not None
    assert speed.ratio == pytest.approx(times)
    assert speed.source == source


def test_of_several_devices_each_carries_what_its_own_speed_lets_it() -> None:
    speed = speed_of(a_replica(1.0), a_replica(1.0), a_replica(2.0))
    assert speed is not None
    assert speed.ratio == pytest.approx(3 / (1 + 1 + 1 / 2))


def test_devices_count_alone_where_dcgm_has_some() -> None:
    speed = speed_of(a_replica(3.0, None), a_replica(1.5))
    assert speed is not None
    assert speed.ratio == pytest.approx(1.5)
    assert speed.source == "DeviceActivity"


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "changes",
    [
        {"activity": 0.0},
        {"activity": 0.29},
        {"activity": 1.2},
        {"activity": NAN},
        {"steps": 20.0},
        {"sequences": 2.0},
        {"steps": NAN},
        {"sequences": NAN},
    ],
)
def test_what_a_device_hardly_did_or_cannot_have_done_does_not_count(
    changes: dict[str, Any],
) -> None:
    assert speed_of(replace(a_replica(2.0), **changes)) is None


def test_the_steps_of_an_engine_that_was_idle_for_a_while_say_nothing_without_dcgm() -> None:
    assert speed_of(replace(a_replica(2.0, None), is_busy=False)) is None
    assert speed_of(replace(a_replica(2.0), is_busy=False)) is not None


@pytest.mark.parametrize("steps", [1e9, INFINITE, 201.0])
def test_an_engine_that_counts_wrongly_is_as_fast_or_slow_as_any_can_be(steps: float) -> None:
    speed = speed_of(replace(a_replica(1.0), steps=steps))
    assert speed is not None
    assert 0.2 <= speed.ratio <= 5.0


def test_without_the_lengths_of_requests_no_step_is_predicted() -> None:
    assert speed_of(a_replica(2.0), load=SpeedReading()) is None
    assert speed_of() is None
