"""Whether an engine keeps the rates that capacity promises of it, by how lengths vary.

Each pair of a known model and an instance with a price is an Interactive replica of the default
SLO, sized for the mean lengths of requests, alone and without a gateway. It is promised a rate for
the mean of their lengths, and plays requests that come at random at that rate.
"""

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from statistics import mean, median, pvariance
from typing import Any, NamedTuple
from zlib import crc32

from scale.cases import CASES, TRACES
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.observed.demand import ArrivedTokens
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.picking.prediction import is_late_alone
from tessera.domain.placement.checks import max_model_len
from tessera.domain.scaling.policies.capacity.variant_capacity import variant_capacity
from tessera.domain.sizing import prices
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import MIB, DeviceKvCache, ReplicaFit, size
from tessera.domain.sizing.table import hardware_options
from tessera.domain.sizing.tensor_parallel import can_shard
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest

GOAL = 0.95
# Lengths that are measured, in a cache of so many tokens.
MEASURED, KV_TOKENS = 20_000, 1_000_000
# Of a pair below the goal: "by chance" is refused with this confidence over all pairs together.
ERROR = 0.01
REQUESTS, AGAIN = 2_000, 40
BATCHES = 20
PRICED_ON = date(2026, 11, 20)
TRACE_NAMES = ("conv", "code", "mlarge")
# Chat beside documents: their tokens, and how many of a hundred requests are documents.
CHAT, DOCUMENT, DOCUMENT_PERCENT = (300, 180), (6300, 600), 15
# Of prompts and answers that are equal, or exponential.
TYPICAL = 1200, 250

Lengths = Sequence[tuple[int, int]]
"""Tokens of prompts and answers."""


class PromisePair(NamedTuple):
    """A model on an instance."""

    model: str
    product: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromisedEngine:
    """A replica that is sized for the mean lengths of its requests, and what is promised of it."""

    spec: InferenceServiceSpec
    demand: Demand
    fit: ReplicaFit
    rate: float
    """Requests per second."""
    meets_slo: bool


class PlayedRate(NamedTuple):
    """What came of requests at one rate."""

    in_time: float
    """Share of first tokens within the objective."""
    chance: float
    """The probability of a share so low, or lower, if the goal were kept."""
    gap: float
    """P95 of the ITL as a share of the objective."""


class KeptRate(NamedTuple):
    """What an engine makes of the rate that is promised for lengths of one kind."""

    pair: PromisePair
    lengths: str
    promised: float
    """Requests per second; where it meets no SLO, those of a full engine."""
    meets_slo: bool
    played: PlayedRate
    """At that rate; where it meets no SLO, of an engine that is nearly idle."""
    kept: float | None = None
    """The largest rate at which the goal is kept, 0 for none; None where it was not searched."""


def pairs() -> list[PromisePair]:
    """Return all pairs of a model that generates and an instance with a price, shuffled."""
    book = prices.price_book(prices.ASSUMED, prices.list_prices(), PRICED_ON)
    named = [
        PromisePair(model, product, hardware.name)
        for model, shape in sorted(models().items())
        if not shape.pooling
        for product in sorted(products())
        if product in book.hourly
        for hardware in hardware_options(products()[product])
        if can_shard(shape, hardware.devices)
    ]
    random.Random(1).shuffle(named)  # noqa: S311 - not a secret
    return named


def kinds(traces: Path) -> list[str]:
    """Return the kinds of lengths: those of the traces are there where these are."""
    present = [name for name in TRACE_NAMES if (traces / CASES[name].file).exists()]
    return ["equal", "exponential", "mixed", *present]


@cache
def _traced(kind: str) -> Lengths:
    trace = CASES[kind].trace(TRACES, 24.0)
    return list(zip(trace.input_tokens, trace.output_tokens, strict=True))


def draw(kind: str, count: int, seed: int, longest: int) -> Lengths:
    """Return so many requests that a context of `longest` tokens holds."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    answer = min(TYPICAL[1], max(1, longest // 2))
    prompt = min(TYPICAL[0], longest - answer)
    lengths: list[tuple[int, int]] = []
    while len(lengths) < count:
        if kind == "equal":
            drawn = prompt, answer
        elif kind == "exponential":
            drawn = 1 + int(rng.expovariate(1 / prompt)), 1 + int(rng.expovariate(1 / answer))
        elif kind == "mixed":
            # Whole numbers: `random` would draw what the time before each request is drawn of.
            drawn = DOCUMENT if rng.randrange(100) < DOCUMENT_PERCENT else CHAT
        else:
            drawn = rng.choice(_traced(kind))
        if min(drawn) >= 1 and sum(drawn) <= longest:
            lengths.append(drawn)
    return lengths


class MeasuredLengths(NamedTuple):
    """What is measured where requests have lengths of one kind."""

    prompt: int
    answer: int
    reading: SpeedReading
    arrived: ArrivedTokens
    lengths: Lengths


@cache
def measured(kind: str, longest: int) -> MeasuredLengths:
    """Return what engines and a gateway measure within a context of `longest` tokens."""
    lengths = draw(kind, MEASURED, 7, longest)
    prompts, answers = (sum(tokens) for tokens in zip(*lengths, strict=True))
    # Each holds its prompt and what it has of its answer, for as long as the answer takes.
    running_tokens = sum(answer * (prompt + answer / 2) for prompt, answer in lengths) / answers
    return MeasuredLengths(
        prompt=round(prompts / MEASURED),
        answer=round(answers / MEASURED),
        reading=SpeedReading(
            requests=MEASURED,
            mean_input_tokens=prompts / MEASURED,
            mean_output_tokens=answers / MEASURED,
            running=1.0,
            kv_usage=running_tokens / KV_TOKENS,
            kv_tokens=KV_TOKENS,
        ),
        arrived=ArrivedTokens(
            requests=MEASURED,
            prompt=prompts,
            answer=answers,
            prompt_squares=sum(prompt * prompt for prompt, _ in lengths),
        ),
        lengths=lengths,
    )


def engine_for(pair: PromisePair, kind: str) -> PromisedEngine | None:
    """Return the replica; None where the model does not fit or misses the SLO."""
    shape = models()[pair.model]
    options = hardware_options(products()[pair.product])
    hardware = next(option for option in options if option.name == pair.instance)
    lengths = measured(kind, max_model_len(_spec(shape), shape))
    spec = _spec(shape, (lengths.prompt, lengths.answer))
    demand = Demand(
        shape=shape,
        precision=None,
        max_model_len=max_model_len(spec, shape),
        input_tokens=lengths.prompt,
        output_tokens=lengths.answer,
        ttft=spec.slo.ttft_p95,
        inter_token=spec.slo.itl_p95,
    )
    fit = size(demand, hardware)
    if not isinstance(fit, ReplicaFit):
        return None
    promised = variant_capacity(
        spec,
        shape,
        fit,
        reading=lengths.reading,
        measured_ratio=None,
        lead=timedelta(seconds=100),
        arrived=lengths.arrived,
        late_alone_share=_late_alone_share(lengths.lengths, fit, spec),
    )
    return PromisedEngine(
        spec=spec,
        demand=demand,
        fit=fit,
        rate=promised.requests_per_second,
        meets_slo=promised.meets_slo,
    )


def _late_alone_share(lengths: Lengths, fit: ReplicaFit, spec: InferenceServiceSpec) -> float:
    """Return the share of prompts that a gateway counts as late by themselves."""
    replica = EngineReplica(
        pod=Ref("", ""),
        uid="",
        address="",
        ready_since=None,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        step_time=fit.step,
    )
    objective = spec.slo.ttft_p95.total_seconds()
    # The longer of two prompts takes longer.
    prompts = sorted(prompt for prompt, _ in lengths)
    in_time = bisect_left(
        prompts, True, key=lambda prompt: is_late_alone(replica, prompt, 0, objective)
    )
    return 1 - in_time / len(prompts)


def _spec(shape: ModelShape, typical: tuple[int, int] | None = None) -> InferenceServiceSpec:
    fields: dict[str, Any] = {
        "model": {"uri": "hf://a/b", "shape": shape},
        "class": "Interactive",
        "scaling": {"minReplicas": 1, "maxReplicas": 1000},
    }
    if typical is not None:
        prompt, answer = typical
        fields["context"] = {"typicalInputTokens": prompt, "typicalOutputTokens": answer}
    return InferenceServiceSpec.model_validate(fields)


def play(engine: PromisedEngine, kind: str, rate: float, requests: int, seed: int) -> PlayedRate:
    """Play so many requests that come at random, so many of them in a second."""
    core = _core(engine)
    lengths = draw(kind, requests, seed, engine.fit.max_model_len)
    rng = random.Random(seed)  # noqa: S311 - not a secret
    objective = engine.demand.ttft.total_seconds()
    in_time, gaps = [False] * requests, Counter[float]()
    now = moment = 0.0
    for number in range(requests + 1):
        moment = moment + rng.expovariate(rate) if number < requests else math.inf
        while now < moment and not core.idle:
            counts = core.counts
            steps, tokens = counts.steps, counts.generated_tokens
            seconds, first = core.skip(moment - now), 0
            if not seconds:
                seconds = core.begin_step()
                for sequence in core.completed_prefills:
                    if sequence.first_token_at is None:
                        sequence.first_token_at, first = now + seconds, first + 1
                        late = now + seconds - sequence.arrived_at > objective
                        in_time[sequence.request.id] = not late
            now += seconds
            gaps[seconds / (counts.steps - steps)] += counts.generated_tokens - tokens - first
            core.end_step()
        if number < requests:
            now = max(now, moment)
            prompt, answer = lengths[number]
            core.submit(
                EngineRequest(id=number, prompt_tokens=prompt, output_tokens=answer), moment
            )
    share, chance = _share_and_chance(in_time)
    return PlayedRate(share, chance, _p95(gaps) / engine.demand.inter_token.total_seconds())


def _core(engine: PromisedEngine) -> EngineCore:
    fit, demand = engine.fit, engine.demand
    kv_cache = DeviceKvCache(shape=demand.shape, devices=fit.hardware.devices)
    # As many as of requests of this length: the memory plan has those of the longest context.
    kv_tokens = kv_cache.tokens(fit.memory.cache_mib * MIB, demand.resident_tokens)
    limits = EngineLimits(
        max_model_len=fit.max_model_len,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        blocks=max(kv_tokens, fit.max_model_len) // 16 + 1,
    )
    return EngineCore(limits, fit.step)


def _share_and_chance(in_time: Sequence[bool]) -> tuple[float, float]:
    """Return the share in time, and how probable one so low is where the goal is kept.

    One request that waits makes others wait, so it is judged by the shares of successive parts.
    """
    part = len(in_time) // BATCHES
    shares = [mean(in_time[begin : begin + part]) for begin in range(0, BATCHES * part, part)]
    share = mean(in_time)
    variance = max(pvariance(shares) / (BATCHES - 1), GOAL * (1 - GOAL) / len(in_time))
    return share, math.erfc((GOAL - share) / math.sqrt(2 * variance)) / 2


def _p95(gaps: Counter[float]) -> float:
    ordered = sorted(gaps.items())
    sums = list(accumulate(tokens for _, tokens in ordered))
    return next(
        (gap for (gap, _), upto in zip(ordered, sums, strict=True) if upto >= GOAL * sums[-1]), 0.0
    )


def judge(
    pair: PromisePair, kind: str, *, is_searched: bool = False, requests: int = REQUESTS
) -> KeptRate:
    """Return what becomes of the promise of a pair that fits."""
    engine = engine_for(pair, kind)
    assert engine is not None  # noqa: S101 - it was chosen since it fits
    # The moments of one seed would be good or bad luck for all pairs.
    seed = crc32("".join((*pair, kind)).encode())
    rate = engine.rate if engine.meets_slo else engine.rate / 100
    played = play(engine, kind, rate, requests, seed)
    if played.in_time < GOAL and engine.meets_slo:
        # Of more requests, others than those by which it was chosen.
        played = play(engine, kind, rate, AGAIN * requests, seed + 1)
    highest = kept_rate(engine, kind, requests) if is_searched else None
    return KeptRate(pair, kind, engine.rate, engine.meets_slo, played, highest)


def kept_rate(engine: PromisedEngine, kind: str, requests: int = REQUESTS) -> float:
    """Return the largest rate at which the goal is kept, to 2 %; 0 where none is."""

    def is_kept(rate: float) -> bool:
        return play(engine, kind, rate, 2 * requests, 8).in_time >= GOAL

    low = high = engine.rate
    while is_kept(high) and high < 64 * engine.rate:
        low, high = high, 1.3 * high
    while low == high or (low > engine.rate / 64 and not is_kept(low)):
        high, low = low, low / 1.3
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low if low > engine.rate / 64 else 0.0


def kept_rates(count: int, searched: int, seed: int, requests: int, traces: Path) -> list[KeptRate]:
    """Return what becomes of so many pairs with each kind of lengths; 0 is all pairs.

    Of the first `searched` of each kind the largest rate is searched that is kept.
    """
    work = []
    for kind in kinds(traces):
        chosen = pairs()
        random.Random(seed).shuffle(chosen)  # noqa: S311 - not a secret
        fitting = (pair for pair in chosen if engine_for(pair, kind) is not None)
        work += [
            (pair, kind, number < searched, requests)
            for number, pair in enumerate(islice(fitting, count or None))
        ]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_judge, work, chunksize=4))


def _judge(work: tuple[PromisePair, str, bool, int]) -> KeptRate:
    pair, kind, is_searched, requests = work
    return judge(pair, kind, is_searched=is_searched, requests=requests)


def below_goal(judged: Sequence[KeptRate]) -> list[KeptRate]:
    """Return the pairs that keep less than the goal, with confidence over all together (Holm)."""
    promised = [each for each in judged if each.meets_slo]
    below = []
    for rank, each in enumerate(sorted(promised, key=lambda each: each.played.chance)):
        if each.played.chance > ERROR / (len(promised) - rank):
            break
        below.append(each)
    return below


def figures(count: int, searched: int, seed: int, requests: int, traces: Path) -> dict[str, Any]:
    """Return the figures of the benchmark, with those of each kind of lengths."""
    judged = kept_rates(count, searched, seed, requests, traces)
    below = below_goal(judged)
    all_figures = _figures(judged, len(below))
    for kind in kinds(traces):
        of_kind = [each for each in judged if each.lengths == kind]
        by_name = _figures(of_kind, sum(each.lengths == kind for each in below))
        all_figures |= {f"{kind}_{name}": value for name, value in by_name.items()}
    return all_figures


def _figures(judged: Sequence[KeptRate], below: int) -> dict[str, Any]:
    without = [each for each in judged if not each.meets_slo]
    promised = [each for each in judged if each.meets_slo]
    ratios = [each.promised / each.kept for each in promised if each.kept]
    return {
        "promise_pairs": len(judged),
        "promise_pairs_below_95": below,
        "promise_least_in_time": round(
            min((each.played.in_time for each in promised), default=1.0), 4
        ),
        "promise_pairs_slow_itl": sum(each.played.gap > 1.01 for each in promised),
        "pairs_without_a_rate": len(without),
        # Not late alone in the simulation.
        "pairs_without_a_rate_in_time": sum(each.played.in_time >= GOAL for each in without),
        "promised_over_kept": round(median(ratios), 3) if ratios else None,
        "promised_over_kept_least": round(min(ratios), 3) if ratios else None,
    }
