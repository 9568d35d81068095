"""Measured speeds of this cluster, for predictions in status and for estimates of batches.

They never change scheduler limits: the pod template would then change after each measurement, and
the replicas would be replaced again and again.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tessera.api.precision import CHECKPOINT
from tessera.api.service_status import SpeedStatus
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.perf.sources import MeasurementKey, SpeedMeasurement, plausible_ratio
from tessera.domain.placement.checks import shape_of
from tessera.domain.service.preparation.shape import with_known_shape
from tessera.domain.steps import Step

# Of the median of fewer namespaces, one could be the measure.
_MIN_VOTES = 3
# By namespace, by what was measured.
NamespaceSpeeds = Mapping[MeasurementKey, Mapping[str, SpeedMeasurement]]


def measured_speeds(services: Sequence[ObservedService]) -> NamespaceSpeeds:
    """Return the mean speed of the services of each namespace, weighted by requests."""
    # Engine options may change the speed as well; the key does not tell them apart.
    by_key: dict[MeasurementKey, dict[str, list[SpeedMeasurement]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for service in services:
        if (measured := measured_speed(service)) is not None:
            key, measurement = measured
            by_key[key][service.ref.namespace].append(measurement)
    return {
        key: {
            namespace: _weighted_mean(measurements)
            for namespace, measurements in by_namespace.items()
        }
        for key, by_namespace in by_key.items()
    }


def _read_measurement(service: ObservedService) -> tuple[MeasurementKey, SpeedMeasurement] | None:
    """Return the measurement in the status of one service, None without one."""
    if service.status.speed is None:
        return None
    key = _measurement_key(with_known_shape(service))
    measurement = own_measurement(service, service.status.speed)
    return None if key is None or measurement is None else (key, measurement)


measured_speed = Step(_read_measurement, lambda *_: None)


def speeds_for(
    namespace: str, speeds: NamespaceSpeeds
) -> Mapping[MeasurementKey, SpeedMeasurement]:
    """Return the speeds that count in a namespace: its own, else the median of three or more.

    Engines count themselves. Each namespace has one vote, so none moves the median beyond what
    others show.
    """
    counted = {
        key: (votes[namespace],) if namespace in votes else tuple(votes.values())
        for key, votes in speeds.items()
    }
    return {
        key: _median(measurements)
        for key, measurements in counted.items()
        if namespace in speeds[key] or len(measurements) >= _MIN_VOTES
    }


def own_measurement(service: ObservedService, speed: SpeedStatus | None) -> SpeedMeasurement | None:
    """Return the measurement in a service's own status; None when it is of another model."""
    if speed is None or service.spec is None or speed.model != service.spec.model.uri:
        return None
    return SpeedMeasurement(ratio=float(speed.ratio), requests=speed.requests)


def corrected_rate(tokens_per_second: float, measurement: SpeedMeasurement | None) -> float:
    """Return a predicted throughput corrected by the measured ratio, if there is one."""
    if measurement is None or measurement.ratio <= 0:
        return tokens_per_second
    return tokens_per_second / measurement.ratio


def _measurement_key(service: ObservedService) -> MeasurementKey | None:
    """Return the key of the measured variant; None once the service runs another variant."""
    variant, speed = service.status.variant, service.status.speed
    shape = shape_of(service.spec) if service.spec is not None else None
    if shape is None or variant is None or speed is None or variant.name != speed.variant:
        return None
    return MeasurementKey(
        shape=shape,
        precision=None if variant.precision == CHECKPOINT else variant.precision,
        product=variant.product,
        profile=variant.profile,
        devices=variant.gpus,
    )


def _weighted_mean(measurements: Sequence[SpeedMeasurement]) -> SpeedMeasurement:
    requests = sum(measurement.requests for measurement in measurements)
    weighted_sum = sum(measurement.ratio * measurement.requests for measurement in measurements)
    return SpeedMeasurement(ratio=weighted_sum / max(requests, 1), requests=requests)


def _median(measurements: Sequence[SpeedMeasurement]) -> SpeedMeasurement:
    ratios = [plausible_ratio(measurement.ratio) for measurement in measurements]
    requests = sum(measurement.requests for measurement in measurements)
    return SpeedMeasurement(ratio=statistics.median(ratios), requests=requests)
