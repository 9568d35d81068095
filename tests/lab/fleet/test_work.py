"""The least work of requests is less than any engine takes for them, and close to it."""

import math
import random

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tessera_lab.fleet.hindsight.work import request_use, step_prices, trace_work
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.trace import Trace
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS
from tests.lab.fleet.loads import DENSE, EXPERTS, WINDOWED, replica, trace


def busy_seconds(load: Trace, model: ReplicaModel) -> float:
    """Return the seconds of all steps in which an engine serves the load."""
    limits = EngineLimits(
        max_model_len=model.max_model_len,
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        blocks=model.kv_tokens // 16,
        prefix_cache=load.prefixes is not None,
        shared_tokens=TRACE_BLOCK_TOKENS,
    )
    timeline = Timeline(EngineCore(limits, model.step))
    for number, arrival in enumerate(load.arrivals):
        timeline.advance(arrival)
        timeline.submit(
            EngineRequest(
                id=number,
                prompt_tokens=load.input_tokens[number],
                output_tokens=load.output_tokens[number],
                shared_prefixes=load.prefixes[number] if load.prefixes else (),
            ),
            arrival,
        )
    timeline.advance(math.inf)
    return timeline.busy_seconds


@pytest.mark.parametrize("step", [DENSE, EXPERTS])
@pytest.mark.parametrize("seed", range(12))
def test_no_engine_serves_a_load_in_less_than_its_work(step: StepTime, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - not a secret
    model = replica(step, seqs=rng.choice([1, 4, 64]), tokens=rng.choice([64, 512, 4096]))
    arrivals = sorted(rng.uniform(0, rng.choice([1, 30])) for _ in range(80))
    load = trace([(at, rng.randint(1, 3000), rng.randint(1, 200)) for at in arrivals])
    least, taken = trace_work(load, model).total, busy_seconds(load, model)
    assert 0.3 * taken < least <= taken


@pytest.mark.parametrize("seed", range(8))
def test_shared_prefixes_are_work_only_once(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - not a secret
    model = replica(DENSE, seqs=8, tokens=512, kv=200_000)
    requests, prefixes = list[tuple[float, int, int]](), list[tuple[int, ...]]()
    for number in range(60):
        family, shared = rng.randint(0, 4), rng.randint(0, 4)
        own = 1000 + 10 * number
        names = (*(100 * family + depth for depth in range(shared)), own, own + 1)
        requests.append((number * 0.05, TRACE_BLOCK_TOKENS * len(names) + rng.randint(0, 50), 20))
        prefixes.append(names)
    load = trace(requests, tuple(prefixes))
    least, taken = trace_work(load, model).total, busy_seconds(load, model)
    assert 0.3 * taken < least <= taken
    assert least < trace_work(trace(requests), model).total


def test_full_decoding_steps_leave_no_gap() -> None:
    model = replica(DENSE, seqs=8, tokens=8, kv=10**7)
    load = trace([(0.0, 1, 1000)] * 8)
    assert trace_work(load, model).total == pytest.approx(busy_seconds(load, model))


def test_the_prices_of_a_step_never_exceed_it() -> None:
    rng = random.Random(3)  # noqa: S311 - not a secret
    for step in (DENSE, EXPERTS, WINDOWED):
        model = replica(step)
        for _ in range(300):
            decoding = rng.randint(0, model.max_num_seqs - 1)
            prompt = rng.randint(1, model.max_num_batched_tokens - decoding)
            use = request_use(prompt, 1, prompt).prompt
            use = use._replace(
                tokens=use.tokens + decoding,
                decoding=decoding,
                sequences=use.sequences + decoding,
                kv_tokens=rng.randint(prompt + decoding, model.kv_tokens),
            )
            taken = step.seconds(
                decoding=decoding,
                kv_tokens=use.kv_tokens,
                prefill_tokens=prompt,
                prefill_pairs=use.pairs,
            )
            assert all(prices.seconds(use) <= taken * (1 + 1e-12) for prices in step_prices(model))


def test_a_request_beyond_the_longest_context_is_no_work() -> None:
    assert trace_work(trace([(0.0, 8000, 193)]), replica(DENSE)).total == 0
