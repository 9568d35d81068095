"""How many times as long as predicted the steps of a service take, by what its devices do.

The latency between tokens is a mean over requests, which a load that changes moves. Seconds of
activity a step are of one device alone.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from tessera.domain.observed.snapshot import STEP_SECONDS, SpeedReading, StepReading
from tessera.domain.perf.sources import plausible_ratio
from tessera.domain.sizing.predicted_steps import predicted_steps
from tessera.domain.sizing.sizing import ReplicaFit

# A mean of fewer steps says little.
_MIN_STEPS = 200
# An engine counts no step that reads prompts alone, which is rare while so many answers are read.
_MIN_SEQUENCES = 4.0
# A device that computes less waits for what is no part of a step; DCGM's rounding is above 1.
_MIN_ACTIVITY, _MAX_ACTIVITY = 0.3, 1.01
# Without DCGM it is taken that an engine steps for as long as its load says, which is all the time
# beyond a quarter of the load; one that began within the two minutes did not.
_MIN_BUSY_SHARE = 0.95

StepSource = Literal["DeviceActivity", "EngineSteps"]


class StepSpeed(NamedTuple):
    """The measured time of a step divided by the predicted one."""

    ratio: float
    source: StepSource
    """`DeviceActivity`: seconds in which DCGM saw the devices compute, by the steps of their
    engines. `EngineSteps`: those steps alone."""


def step_speed(
    fit: ReplicaFit, load: SpeedReading, replicas: Iterable[StepReading]
) -> StepSpeed | None:
    """Return the speed of the replicas of a variant; None where no reading counts.

    It is the harmonic mean: what they carry together is the sum of what each does. Where DCGM has
    some of the devices, these count alone.
    """
    speeds = [
        speed for replica in replicas if (speed := _replica_speed(fit, load, replica)) is not None
    ]
    for source in ("DeviceActivity", "EngineSteps"):
        if ratios := [speed.ratio for speed in speeds if speed.source == source]:
            return StepSpeed(len(ratios) / sum(1 / ratio for ratio in ratios), source)
    return None


def _replica_speed(fit: ReplicaFit, load: SpeedReading, replica: StepReading) -> StepSpeed | None:
    if not (replica.steps >= _MIN_STEPS and replica.sequences >= _MIN_SEQUENCES):
        return None
    predicted = predicted_steps(fit, load, replica.sequences, replica.prefill_tokens)
    if predicted is None:
        return None
    source: StepSource = "DeviceActivity"
    activity, least = replica.activity, _MIN_ACTIVITY
    if activity is None:
        if not replica.is_busy:
            return None
        source, activity, least = "EngineSteps", predicted.busy_share, _MIN_BUSY_SHARE
    if not least <= activity <= _MAX_ACTIVITY:
        return None
    seconds = activity * STEP_SECONDS / replica.steps
    return StepSpeed(plausible_ratio(seconds / predicted.mean), source)
