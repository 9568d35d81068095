"""The performance model: seconds of an engine step by model, precision and hardware.

A step reads all weights and the resident KV cache once and computes each of its tokens. Which
shares of a device's peaks it reaches comes from one of three sources, named in `StepTime.source`:

- `measured`: the prediction times the ratio that this cluster measured;
- `table`: shares fitted on published kernel measurements of this GPU family (`data/speed.json`);
- `roofline`: the geometric means of those families, for hardware or precisions without any.

`step` has the formula, `speculation` what drafted tokens yield, `roofline` derives the coefficients
from shares, `table` reads the shares and `sources` chooses among the sources.
"""

from tessera.domain.perf.roofline import min_read_seconds
from tessera.domain.perf.sources import (
    MIN_LOAD_MIB_PER_SECOND,
    MIN_REQUESTS,
    OFF_TOLERANCE,
    MeasurementKey,
    SpeedMeasurement,
    measured_ratio,
    measured_tokens_per_step,
    measurement_key,
    plausible_ratio,
    step_time,
)
from tessera.domain.perf.speculation import acceptance_of, assumed_acceptance, decode_gain
from tessera.domain.perf.step import Drafting, StepTime, attention_pairs

__all__ = [
    "MIN_LOAD_MIB_PER_SECOND",
    "MIN_REQUESTS",
    "OFF_TOLERANCE",
    "Drafting",
    "MeasurementKey",
    "SpeedMeasurement",
    "StepTime",
    "acceptance_of",
    "assumed_acceptance",
    "attention_pairs",
    "decode_gain",
    "measured_ratio",
    "measured_tokens_per_step",
    "measurement_key",
    "min_read_seconds",
    "plausible_ratio",
    "step_time",
]
