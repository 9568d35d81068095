"""What this cluster measured, for what is told of speed and for the pace of batches.

It never touches the limits of an engine: these are kept by the recipe, and a fleet that changed its
engines after each measurement would never rest.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tessera.api.inference_service import SpeedStatus
from tessera.domain.checks import shape_of
from tessera.domain.model.prepare import with_known_shape
from tessera.domain.perf import Case, Measured
from tessera.domain.snapshot import ObservedService


def measured(services: Sequence[ObservedService]) -> Mapping[Case, Measured]:
    """By what was measured: of several services of a case the mean, weighed by their requests.

    Options of an engine may make it slower than others of its case; no case tells these apart.
    """
    found: dict[Case, list[Measured]] = defaultdict(list)
    for service in services:
        if service.status.speed is None:
            continue
        case, own = _case(with_known_shape(service)), own_of(service, service.status.speed)
        if case is not None and own is not None:
            found[case].append(own)
    return {case: _mean(several) for case, several in found.items()}


def own_of(service: ObservedService, speed: SpeedStatus | None) -> Measured | None:
    """What a service says of itself, if it speaks of the model that it now has."""
    if speed is None or service.spec is None or speed.model != service.spec.model.uri:
        return None
    return Measured(ratio=float(speed.ratio), requests=speed.requests)


def rate(tokens_per_second: float, found: Measured | None) -> float:
    """A predicted throughput by what was measured: every step takes so many times as long."""
    if found is None or found.ratio <= 0:
        return tokens_per_second
    return tokens_per_second / found.ratio


def _case(service: ObservedService) -> Case | None:
    """What the measured variant is a case of; none once the service has moved on."""
    variant, speed = service.status.variant, service.status.speed
    shape = shape_of(service.spec) if service.spec is not None else None
    if shape is None or variant is None or speed is None or variant.name != speed.variant:
        return None
    return Case(
        shape=shape,
        precision=None if variant.precision == "checkpoint" else variant.precision,
        product=variant.product,
        profile=variant.profile,
        devices=variant.gpus,
    )


def _mean(several: Sequence[Measured]) -> Measured:
    requests = sum(one.requests for one in several)
    weighed = sum(one.ratio * one.requests for one in several)
    return Measured(ratio=weighed / max(requests, 1), requests=requests)
