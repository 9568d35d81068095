"""The engine keeps the SLO of a replica in what sizing and capacity promise of it."""

import math
import random
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from itertools import accumulate
from typing import NamedTuple

import pytest

from tessera.api.service_class import ServiceClass
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.observed.demand import ArrivedTokens
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.scaling.policies.capacity.variant_capacity import variant_capacity
from tessera.domain.sizing.sizing import MIB, DeviceKvCache
from tessera.domain.sizing.table import hardware_options
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tests.domain.scaling.replicas import Replica, replica_of, replicas_on_priced_hardware

CLASSES: tuple[ServiceClass, ...] = ("Interactive", "Standard")


class Attainment(NamedTuple):
    in_time: float
    """Share of the first tokens within the objective."""
    itl: float
    """P95 of the ITL as a share of the objective."""


def engine_of(replica: Replica) -> EngineCore:
    fit, demand = replica.fit, replica.demand
    cache = DeviceKvCache(shape=demand.shape, devices=fit.hardware.devices)
    # As many as of requests of this length: the memory plan has those of the longest context.
    kv_tokens = cache.tokens(fit.memory.cache_mib * MIB, demand.resident_tokens)
    limits = EngineLimits(
        max_model_len=fit.max_model_len,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        blocks=max(kv_tokens, fit.max_model_len) // 16 + 1,
    )
    return EngineCore(limits, fit.step)


class Play:
    """An engine with typical requests, of which the later ones count."""

    def __init__(self, replica: Replica, first_answers: Iterable[int] = ()) -> None:
        self._demand, self._engine = replica.demand, engine_of(replica)
        self._now, self._submitted = 0.0, 0
        self._gaps = Counter[float]()
        """Tokens by the seconds since the one before."""
        self._ttft: list[float] = []
        for output_tokens in first_answers:
            self._submit(output_tokens, 0.0)
        # The first prompts come all at once, and those that replace them wait for them.
        self._first = 2 * self._submitted

    def replace(self, requests: int) -> Attainment:
        """Play so many requests, of which each comes as another one ends."""
        while len(self._ttft) < requests:
            for _ in range(self._advance(math.inf)):
                self._submit(self._demand.output_tokens, self._now)
        return self._attainment()

    def arrive(self, rate: float, requests: int) -> Attainment:
        """Play so many requests that come at random."""
        rng, moment = random.Random(5), 0.0  # noqa: S311 - not a secret
        for _ in range(requests):
            moment += rng.expovariate(rate)
            while self._now < moment and not self._engine.idle:
                self._advance(moment)
            self._now = max(self._now, moment)
            self._submit(self._demand.output_tokens, moment)
        while not self._engine.idle:
            self._advance(math.inf)
        return self._attainment()

    def _submit(self, output_tokens: int, at: float) -> None:
        prompt = self._demand.input_tokens
        request = EngineRequest(
            id=self._submitted, prompt_tokens=prompt, output_tokens=output_tokens
        )
        assert self._engine.submit(request, at) is None
        self._submitted += 1

    def _advance(self, until: float) -> int:
        """Do the next step, or equal ones; return how many requests ended."""
        engine = self._engine
        steps, tokens = engine.counts.steps, engine.counts.generated_tokens
        first_tokens = 0
        seconds = engine.skip(until - self._now)
        if not seconds:
            seconds = engine.begin_step()
            for sequence in engine.completed_prefills:
                if sequence.first_token_at is None:
                    sequence.first_token_at = self._now + seconds
                    first_tokens += 1
                    if sequence.request.id >= self._first:
                        self._ttft.append(self._now + seconds - sequence.arrived_at)
        self._now += seconds
        later_tokens = engine.counts.generated_tokens - tokens - first_tokens
        self._gaps[seconds / (engine.counts.steps - steps)] += later_tokens
        return len(engine.end_step())

    def _attainment(self) -> Attainment:
        in_time = sum(ttft <= self._demand.ttft.total_seconds() for ttft in self._ttft)
        gaps = sorted(self._gaps.items())
        sums = list(accumulate(tokens for _, tokens in gaps))
        p95 = next(
            gap for (gap, _), tokens in zip(gaps, sums, strict=True) if tokens >= 0.95 * sums[-1]
        )
        return Attainment(in_time / len(self._ttft), p95 / self._demand.inter_token.total_seconds())


def when_full(replica: Replica, requests: int) -> Attainment:
    """Return the attainment of an engine that is always full while nothing waits."""
    places, answer = replica.limits.max_num_seqs, replica.demand.output_tokens
    # The first answers end one after the other, as later ones do.
    return Play(
        replica, [max(1, answer * (place + 1) // places) for place in range(places)]
    ).replace(requests)


def carried(replica: Replica) -> float:
    """Return the requests per second that one replica carries within its SLO, all as long."""
    prompt, answer = replica.demand.input_tokens, replica.demand.output_tokens
    return variant_capacity(
        replica.spec,
        replica.demand.shape,
        replica.fit,
        reading=SpeedReading(),
        measured_ratio=None,
        lead=timedelta(seconds=100),
        arrived=ArrivedTokens(100, 100 * prompt, 100 * answer, 100 * prompt**2),
    ).requests_per_second


# The cache of each holds hardly more than so many requests half way through their answers. Without
# room for those that are further, an engine preempts and reads again.
@pytest.mark.parametrize(
    ("model", "product", "profile"),
    [
        ("allenai/OLMo-2-1124-13B-Instruct", "NVIDIA-H100-80GB-HBM3", "3g.40gb"),
        ("tiiuae/Falcon3-3B-Instruct", "NVIDIA-A100-SXM4-40GB", "1g.10gb"),
        ("meta-llama/Llama-2-7b-chat-hf", "NVIDIA-H100-80GB-HBM3", "1g.20gb"),
    ],
)
def test_an_engine_whose_cache_is_full_keeps_the_slo(
    model: str, product: str, profile: str
) -> None:
    options = hardware_options(products()[product])
    hardware = next(option for option in options if option.name == profile)
    replica = replica_of("Interactive", models()[model], hardware)
    assert replica is not None
    attainment = when_full(replica, requests=150)
    assert attainment.in_time >= 0.95
    assert attainment.itl <= 1


# One place, the first with a step that takes longer the more experts it uses; three places; 44,
# where requests run the longer the more there are. The last would be busy for most of the time, and
# reads one short prompt after the other, each with nearly all experts.
@pytest.mark.parametrize(
    ("service_class", "model", "product", "instance"),
    [
        ("Interactive", "ibm-granite/granite-3.1-3b-a800m-instruct", "NVIDIA-H100-PCIe", "1g.10gb"),
        ("Interactive", "meta-llama/Llama-2-7b-chat-hf", "Tesla-T4", "2x whole GPU"),
        ("Standard", "deepseek-ai/deepseek-llm-7b-chat", "NVIDIA-A100-SXM4-80GB", "2g.20gb"),
        (
            "Standard",
            "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
            "NVIDIA-H200",
            "1g.35gb",
        ),
        ("Interactive", "allenai/OLMoE-1B-7B-0924-Instruct", "NVIDIA-H100-PCIe", "8x whole GPU"),
    ],
)
def test_requests_at_random_keep_the_slo_at_the_rate_that_is_promised(
    service_class: ServiceClass, model: str, product: str, instance: str
) -> None:
    options = hardware_options(products()[product])
    hardware = next(option for option in options if option.name == instance)
    replica = replica_of(service_class, models()[model], hardware)
    assert replica is not None
    attainment = Play(replica).arrive(carried(replica), requests=4000)
    assert attainment.in_time >= 0.95
    assert attainment.itl <= 1


def at_rate(replica: Replica, rate: float, requests: int) -> Attainment:
    """Return the attainment of requests that come at random."""
    attainment = Play(replica).arrive(rate, requests)
    if attainment.in_time < 0.95:
        # Of some hundred, by chance fewer may be in time than of many.
        return Play(replica).arrive(rate, 20 * requests)
    return attainment


def check_promises(service_class: ServiceClass, every: int, requests: int) -> int:
    checked = 0
    for replica in replicas_on_priced_hardware(service_class, every):
        rate = carried(replica)
        for name, attainment, share in (
            ("full", when_full(replica, requests), 0.95),
            ("at the rate it carries", at_rate(replica, rate, 8 * requests), 0.95),
            ("nearly idle", Play(replica).arrive(rate / 50, requests // 4), 1.0),
        ):
            text = f"{name}: {attainment}, {replica.fit.hardware}, {replica.limits}"
            assert attainment.in_time >= share, text
            assert attainment.itl <= 1.01, text
        checked += 1
    return checked


@pytest.mark.parametrize("service_class", CLASSES)
def test_the_slo_is_kept_at_the_loads_that_are_promised(service_class: ServiceClass) -> None:
    assert check_promises(service_class, every=400, requests=100) > 10


@pytest.mark.full
@pytest.mark.parametrize("service_class", CLASSES)
def test_it_is_kept_on_every_instance(service_class: ServiceClass) -> None:
    assert check_promises(service_class, every=1, requests=150) > 5_000
