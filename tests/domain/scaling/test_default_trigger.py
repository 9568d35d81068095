"""The default trigger of a class adds replicas before its default SLO is lost, on all hardware."""

import random
from bisect import bisect_left
from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.api.service_class import ServiceClass
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.placement.checks import max_model_len
from tessera.domain.scaling.policies.capacity.growth import Growth
from tessera.domain.scaling.policies.capacity.policy import replicas_for
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    variant_capacity,
)
from tessera.domain.scaling.policies.queue_and_activity import recommended_replicas
from tessera.domain.scaling.state import ServiceLoad
from tessera.domain.scaling.target import ScaleTarget, target_of
from tessera.domain.sizing import prices
from tessera.domain.sizing.scheduler_limits import Demand, SchedulerLimits, full_step_seconds
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera.domain.sizing.table import hardware_options
from tessera.domain.sizing.tensor_parallel import can_shard
from tests.builders import NOW

CLASSES: tuple[ServiceClass, ...] = ("Interactive", "Standard", "Batch")
BOOK = prices.price_book(prices.ASSUMED, prices.list_prices(), date(2026, 11, 20))


class Replica(NamedTuple):
    """A replica of a model on priced hardware, sized by the default SLO of its class."""

    spec: InferenceServiceSpec
    demand: Demand
    fit: ReplicaFit

    @property
    def limits(self) -> SchedulerLimits:
        return self.fit.limits

    def ttft(self, waiting: float, replicas: int) -> float:
        """Return the seconds to the first token of the last of so many waiting requests.

        All replicas are full: a request leaves the queue with each answer that ends. Its prompt is
        read by steps that are full.
        """
        served = replicas * self.limits.tokens_per_second / self.demand.output_tokens
        sequences, tokens = self.limits.max_num_seqs, self.limits.max_num_batched_tokens
        steps = -(-self.demand.input_tokens // (tokens - sequences))
        reading = steps * full_step_seconds(self.demand, self.fit.step, sequences, tokens)
        return waiting / served + reading


def replica_of(
    service_class: ServiceClass, shape: ModelShape, hardware: Hardware
) -> Replica | None:
    """Return the replica; None where the model does not fit or misses the SLO."""
    scaling = {"minReplicas": 1, "maxReplicas": 1000}
    model = {"uri": "hf://a/b", "shape": shape}
    spec = InferenceServiceSpec.model_validate(
        {"model": model, "class": service_class, "scaling": scaling}
    )
    length = max_model_len(spec, shape)
    answer = min(spec.context.typical_output_tokens, max(1, length // 2))
    prompt = min(spec.context.typical_input_tokens, length - answer)
    demand = Demand(
        shape=shape,
        precision=None,
        max_model_len=length,
        input_tokens=prompt,
        output_tokens=answer,
        ttft=spec.slo.ttft_p95,
        inter_token=spec.slo.itl_p95,
    )
    fit = size(demand, hardware)
    return Replica(spec, demand, fit) if isinstance(fit, ReplicaFit) else None


def replicas_on_priced_hardware(service_class: ServiceClass, every: int) -> Iterator[Replica]:
    """Yield every n-th combination of a known model and an instance with a price."""
    instances = [
        hardware
        for name, product in products().items()
        if name in BOOK.hourly
        for hardware in hardware_options(product)
    ]
    combinations = [
        (shape, hardware)
        for shape in models().values()
        if not shape.pooling
        for hardware in instances
        if can_shard(shape, hardware.devices)
    ]
    # Shuffled, since every n-th of a product of two lists would be of few instances.
    random.Random(1).shuffle(combinations)  # noqa: S311 - not a secret
    for shape, hardware in combinations[::every]:
        if (replica := replica_of(service_class, shape, hardware)) is not None:
            yield replica


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
            assert silent <= replicas * carried
            queue = capacity.queue_time.total_seconds() * replicas * carried
            assert replica.ttft(queue, replicas) <= replica.demand.ttft.total_seconds() + 1e-6
            checked += 1
    return checked


def largest_silent_rate(capacity: VariantCapacity, replicas: int) -> float:
    """Return the highest rate of arrivals, in steps of a thousandth, that adds no replica."""
    full = replicas * capacity.requests_per_second
    headroom = Growth().headroom(capacity.lead)
    steps = bisect_left(
        range(2000),
        True,
        key=lambda step: (
            replicas_for(full * step / 1000, capacity.requests_per_second, headroom) > replicas
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
