"""How fast an engine steps: the only place that knows speed.

A step reads all weights and the resident KV cache once and computes every token that is in it. How
much of a device's peaks it reaches comes from one of three sources, and every answer says which:

- `measured`: the prediction times the ratio that was seen in this cluster;
- `table`: shares fitted on published kernel measurements of this GPU family (`data/speed.json`);
- `roofline`: shares that are usual among those families, on hardware or precisions without any.

`step` is the form, `roofline` makes it from shares, `table` reads them, `source` chooses, `fit` is
how shares are found, `capacity` says what a replica holds at its promise.
"""

from tessera.domain.perf.roofline import decode_floor_seconds, ridge_point
from tessera.domain.perf.sources import (
    MIN_LOAD_MIB_PER_SECOND,
    MeasurementKey,
    SpeedMeasurement,
    measurement_key,
    step_time,
)
from tessera.domain.perf.step import StepTime

__all__ = [
    "MIN_LOAD_MIB_PER_SECOND",
    "MeasurementKey",
    "SpeedMeasurement",
    "StepTime",
    "decode_floor_seconds",
    "measurement_key",
    "ridge_point",
    "step_time",
]
