"""How fast hardware answers a batch: as measured so far, else as expected."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from types import MappingProxyType

from tessera.api.batch_inference import AttemptStatus, ProgressStatus
from tessera.domain.batch.spec import Source
from tessera.domain.checks import shape_of
from tessera.domain.perf import (
    MIN_LOAD_MIB_PER_SECOND,
    MeasurementKey,
    SpeedMeasurement,
    measurement_key,
)
from tessera.domain.placement import HardwareChoice

UNMEASURED = 0.7
"""Share of the expected speed that is counted on before anything was measured: of published steps
on GPUs that were left out of the fit, the worst took 1.4 times as long as predicted."""
MEASURED = 0.9
"""The same once services told how fast the model is on such hardware: their statuses follow only
what moves by a tenth."""
_ENOUGH_ROWS = 20
_ENOUGH_TIME = timedelta(seconds=60)
_START = timedelta(seconds=180)
"""Image, engine and graphs on a node that is there."""


def rate(
    choice: HardwareChoice,
    source: Source,
    progress: ProgressStatus,
    measured: Mapping[MeasurementKey, SpeedMeasurement] = MappingProxyType({}),
) -> float:
    """Rows in a second that the hardware is counted on for: by the batch's own pace, else by what
    services measured, else by what is expected."""
    share = _share(choice, source, measured) if progress.pace is None else float(progress.pace)
    return _expected(choice, source, progress) * max(share, 0.01)


def _share(
    choice: HardwareChoice, source: Source, measured: Mapping[MeasurementKey, SpeedMeasurement]
) -> float:
    shape = shape_of(source.spec)
    if shape is None:
        return UNMEASURED
    found = measured.get(measurement_key(shape, choice.fit.precision, choice.fit.hardware))
    return UNMEASURED if found is None else MEASURED / found.ratio


def start(choice: HardwareChoice, progress: ProgressStatus) -> timedelta:
    """Time from the decision for an attempt to its first rows: as last measured, else expected."""
    if progress.start_seconds is not None:
        return timedelta(seconds=progress.start_seconds)
    weights = choice.fit.memory.weights_mib * choice.fit.hardware.devices
    return _START + timedelta(seconds=weights // MIN_LOAD_MIB_PER_SECOND)


def paced(
    progress: ProgressStatus, attempt: AttemptStatus, choice: HardwareChoice, source: Source
) -> ProgressStatus:
    """The progress with the pace of the attempt that is at work, once that can be told."""
    if attempt.running_since is None or progress.at - attempt.running_since < _ENOUGH_TIME:
        return progress
    rows = progress.done - attempt.running_from
    if rows <= 0:
        return progress
    measured = rows / (progress.at - attempt.running_since).total_seconds()
    pace = Decimal(f"{measured / _expected(choice, source, progress):.2f}")
    return progress.model_copy(update={"pace": min(max(pace, Decimal("0.01")), Decimal(100))})


def _expected(choice: HardwareChoice, source: Source, progress: ProgressStatus) -> float:
    known = progress.completed >= _ENOUGH_ROWS and progress.output_tokens > 0
    tokens = progress.output_tokens / progress.completed if known else source.output_tokens
    return choice.fit.limits.tokens_per_second / max(tokens, 1)
