"""The default trigger of a class adds replicas before its default SLO is lost, on all hardware."""

from bisect import bisect_left
from datetime import timedelta

import pytest

from tessera.api.service_class import ServiceClass
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.scaling.policies.capacity.policy import replicas_for
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    variant_capacity,
)
from tessera.domain.scaling.policies.queue_and_activity import recommended_replicas
from tessera.domain.scaling.state import ServiceLoad
from tessera.domain.scaling.target import ScaleTarget, target_of
from tests.builders import NOW
from tests.domain.scaling.replicas import replicas_on_priced_hardware

CLASSES: tuple[ServiceClass, ...] = ("Interactive", "Standard", "Batch")


def longest_silent_queue(target: ScaleTarget, replicas: int) -> int:
    """Return the most waiting requests at full replicas for which none is added."""

    def adds(waiting: int) -> bool:
        load = ServiceLoad(
            at=NOW,
            replicas=replicas,
            ready=replicas,
            serving=replicas,
            waiting=waiting,
            running=replicas * target.max_num_seqs,
            activity=None,
        )
        return recommended_replicas(target, load, replicas) > replicas

    return bisect_left(range(1_000_000), True, key=adds) - 1


def check_queue_and_activity(service_class: ServiceClass, every: int) -> int:
    checked = 0
    for replica in replicas_on_priced_hardware(service_class, every):
        target = target_of(replica.spec, replica.limits, replica.fit.max_model_len)
        for replicas in (1, 2, 7):
            waiting = longest_silent_queue(target, replicas)
            seconds = replica.ttft(waiting, replicas)
            assert seconds <= replica.demand.ttft.total_seconds() + 1e-6, (
                f"{waiting} requests wait for {replicas} replicas on {replica.fit.hardware}, the "
                f"last one for {seconds:.2f} s, and none is added"
            )
            checked += 1
    return checked


@pytest.mark.parametrize("service_class", CLASSES)
def test_what_waits_while_nothing_is_added_gets_its_first_token_in_time(
    service_class: ServiceClass,
) -> None:
    assert check_queue_and_activity(service_class, every=5) > 2_000


@pytest.mark.full
@pytest.mark.parametrize("service_class", CLASSES)
def test_it_does_on_every_instance(service_class: ServiceClass) -> None:
    assert check_queue_and_activity(service_class, every=1) > 10_000


def check_capacity(service_class: ServiceClass, every: int) -> int:
    checked = 0
    for replica in replicas_on_priced_hardware(service_class, every):
        capacity = variant_capacity(
            replica.spec,
            replica.demand.shape,
            replica.fit,
            reading=SpeedReading(),
            measured_ratio=None,
            lead=timedelta(seconds=100),
        )
        carried = capacity.requests_per_second
        for replicas in (1, 2, 7):
            silent = largest_silent_rate(capacity, replicas)
            assert silent <= replicas * carried * (1 + 1e-9)
            queue = capacity.queue_time.total_seconds() * replicas * carried
            assert replica.ttft(queue, replicas) <= replica.demand.ttft.total_seconds() + 1e-6
            checked += 1
    return checked


def largest_silent_rate(capacity: VariantCapacity, replicas: int) -> float:
    """Return the highest rate of arrivals, in steps of a thousandth, that adds no replica."""
    full = replicas * capacity.requests_per_second
    steps = bisect_left(
        range(2000),
        True,
        key=lambda step: (
            replicas_for(full * step / 1000, capacity.requests_per_second, 1.0) > replicas
        ),
    )
    return full * (steps - 1) / 1000


@pytest.mark.parametrize("service_class", CLASSES)
def test_arrivals_add_replicas_before_those_there_are_carry_them_too_slowly(
    service_class: ServiceClass,
) -> None:
    assert check_capacity(service_class, every=5) > 2_000


@pytest.mark.full
@pytest.mark.parametrize("service_class", CLASSES)
def test_arrivals_do_on_every_instance(service_class: ServiceClass) -> None:
    assert check_capacity(service_class, every=1) > 10_000
