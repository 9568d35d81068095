"""What this cluster measured, for what is told of speed and for the pace of batches.

It never touches the limits of an engine: these are kept by the recipe, and a fleet that changed its
engines after each measurement would never rest.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tessera.api.inference_service import SpeedStatus
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.perf import MeasurementKey, SpeedMeasurement
from tessera.domain.placement.checks import shape_of
from tessera.domain.service.model_files import with_known_shape


def measured_speeds(
    services: Sequence[ObservedService],
) -> Mapping[MeasurementKey, SpeedMeasurement]:
    """By what was measured: of several services of a case the mean, weighed by their requests.

    Options of an engine may make it slower than others of its case; no case tells these apart.
    """
    by_key: dict[MeasurementKey, list[SpeedMeasurement]] = defaultdict(list)
    for service in services:
        if service.status.speed is None:
            continue
        key, own_speed = (
            _measurement_key(with_known_shape(service)),
            own_measurement(service, service.status.speed),
        )
        if key is not None and own_speed is not None:
            by_key[key].append(own_speed)
    return {
        measured_key: _weighted_mean(measurements) for measured_key, measurements in by_key.items()
    }


def own_measurement(service: ObservedService, speed: SpeedStatus | None) -> SpeedMeasurement | None:
    """What a service says of itself, if it speaks of the model that it now has."""
    if speed is None or service.spec is None or speed.model != service.spec.model.uri:
        return None
    return SpeedMeasurement(ratio=float(speed.ratio), requests=speed.requests)


def corrected_rate(tokens_per_second: float, measurement: SpeedMeasurement | None) -> float:
    """A predicted throughput by what was measured: every step takes so many times as long."""
    if measurement is None or measurement.ratio <= 0:
        return tokens_per_second
    return tokens_per_second / measurement.ratio


def _measurement_key(service: ObservedService) -> MeasurementKey | None:
    """What the measured variant is a case of; none once the service has moved on."""
    variant, speed = service.status.variant, service.status.speed
    shape = shape_of(service.spec) if service.spec is not None else None
    if shape is None or variant is None or speed is None or variant.name != speed.variant:
        return None
    return MeasurementKey(
        shape=shape,
        precision=None if variant.precision == "checkpoint" else variant.precision,
        product=variant.product,
        profile=variant.profile,
        devices=variant.gpus,
    )


def _weighted_mean(measurements: Sequence[SpeedMeasurement]) -> SpeedMeasurement:
    requests = sum(measurement.requests for measurement in measurements)
    weighted_sum = sum(measurement.ratio * measurement.requests for measurement in measurements)
    return SpeedMeasurement(ratio=weighted_sum / max(requests, 1), requests=requests)
