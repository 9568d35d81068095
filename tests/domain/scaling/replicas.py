"""Replicas of the known models on all hardware with a price."""

import random
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.api.service_class import ServiceClass
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.placement.checks import max_model_len
from tessera.domain.sizing import prices
from tessera.domain.sizing.scheduler_limits import Demand, SchedulerLimits, full_step_seconds
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera.domain.sizing.table import hardware_options
from tessera.domain.sizing.tensor_parallel import can_shard

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
