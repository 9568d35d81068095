"""Throughput of a batch on some hardware: measured so far, else expected."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from types import MappingProxyType

from tessera.api.batch_inference import AttemptStatus, ProgressStatus
from tessera.domain.batch.spec import BatchModelSource
from tessera.domain.perf.sources import (
    MIN_LOAD_MIB_PER_SECOND,
    MeasurementKey,
    SpeedMeasurement,
    measurement_key,
)
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import shape_of

# Share of the predicted speed that is assumed before any measurement: among published step times
# of GPUs that the fit left out, the worst was 1.4 times the prediction.
UNMEASURED_SPEED_SHARE = 0.7
# The share once services measured the model on such hardware: their statuses change only when the
# speed moves by 10 %.
MEASURED_SPEED_SHARE = 0.9
_MIN_ROWS = 20
_MIN_RUNTIME = timedelta(seconds=60)
# Image pull, engine start and CUDA graphs on a node that is Ready.
_BASE_START_DURATION = timedelta(seconds=180)


def rows_per_second(
    choice: HardwareChoice,
    source: BatchModelSource,
    progress: ProgressStatus,
    measured: Mapping[MeasurementKey, SpeedMeasurement] = MappingProxyType({}),
) -> float:
    """Return the rows per second that the schedule assumes for the hardware.

    The pace of the batch itself comes first, then measurements of services, then the prediction.
    """
    speed_ratio = progress.speed_ratio
    share = _speed_share(choice, source, measured) if speed_ratio is None else float(speed_ratio)
    return _expected_rows_per_second(choice, source, progress) * max(share, 0.01)


def _speed_share(
    choice: HardwareChoice,
    source: BatchModelSource,
    measured: Mapping[MeasurementKey, SpeedMeasurement],
) -> float:
    shape = shape_of(source.spec)
    if shape is None:
        return UNMEASURED_SPEED_SHARE
    fit = choice.fit
    measurement = measured.get(measurement_key(shape, fit.precision, fit.hardware))
    return (
        UNMEASURED_SPEED_SHARE if measurement is None else MEASURED_SPEED_SHARE / measurement.ratio
    )


def start_duration(choice: HardwareChoice, progress: ProgressStatus) -> timedelta:
    """Return the time from the decision for an attempt to its first rows."""
    if progress.startup_seconds is not None:
        return timedelta(seconds=progress.startup_seconds)
    weights = choice.fit.memory.weights_mib * choice.fit.hardware.devices
    return _BASE_START_DURATION + timedelta(seconds=weights // MIN_LOAD_MIB_PER_SECOND)


def with_measured_pace(
    progress: ProgressStatus,
    attempt: AttemptStatus,
    choice: HardwareChoice,
    source: BatchModelSource,
) -> ProgressStatus:
    """Return the progress with the pace of the running attempt, once it has run for 60 s."""
    if attempt.running_since is None or progress.at - attempt.running_since < _MIN_RUNTIME:
        return progress
    rows = progress.done - attempt.rows_at_start
    if rows <= 0:
        return progress
    measured = rows / (progress.at - attempt.running_since).total_seconds()
    pace = Decimal(f"{measured / _expected_rows_per_second(choice, source, progress):.2f}")
    update = {"speed_ratio": min(max(pace, Decimal("0.01")), Decimal(100))}
    return progress.model_copy(update=update)


def _expected_rows_per_second(
    choice: HardwareChoice, source: BatchModelSource, progress: ProgressStatus
) -> float:
    counted, tokens = progress.output_tokens, float(source.output_tokens)
    if source.pooling_task is not None:
        counted, tokens = progress.prompt_tokens, float(source.spec.context.typical_input_tokens)
    if progress.completed >= _MIN_ROWS and counted > 0:
        tokens = counted / progress.completed
    return choice.fit.limits.tokens_per_second / max(tokens, 1)
