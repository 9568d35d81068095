"""What the engine's state machine costs, and how true its speeds are: `make bench-engine`.

A few engines live through a synthetic day of a million requests, in turn: a quiet night and a busy
afternoon, log-normal lengths, prompts that begin like others do. Only the machine's own CPU time
counts, not the making of requests. The last line is `BENCH {json}`.
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import calibrate
import kept_rates
from figures import benchmark
from scale.cases import TRACES
from speed_errors import rms_figures
from tessera.adapters.clock import now
from tessera.domain.hardware import device as hardware
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.perf import sources
from tessera.domain.perf.table import shipped_speed_table
from tessera.domain.sizing import prices
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera.domain.sizing.table import smallest_serving_rows
from tessera_lab.engine import EngineCore, ServedRequest, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tessera_lab.sim import self_benchmark as bench

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PRODUCT = "NVIDIA-A100-SXM4-80GB"
DAY = 86_400.0
# As many as bear the busiest hour without a queue that grows.
ENGINES = 3
# Requests that are made ahead of the clock that is read.
SLICE = 10_000
BLOCK = 16
# 55 GiB at 128 KiB a token.
BLOCKS = 29_000
# System prompts and documents that prompts begin with, the n-th used 1/n as often.
FAMILIES = 2_000


@dataclass
class DayCounts:
    """What is kept of the day."""

    served: int = 0
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0
    slow_first_tokens: int = 0
    """Later than two seconds."""


def requests(count: int, seed: int) -> Iterator[tuple[float, EngineRequest]]:
    """Arrivals over a day, at their moments."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    weights = list(itertools.accumulate(1 / rank for rank in range(1, FAMILIES + 1)))
    lengths = [rng.randrange(8, 96) for _ in range(FAMILIES)]
    busiest = count / DAY * 1.6
    moment, number = 0.0, 0
    while number < count:
        moment += rng.expovariate(busiest)
        wave = 1 + 0.6 * math.sin(2 * math.pi * (moment / DAY - 0.375))
        if rng.random() > wave / 1.6:
            continue
        family = rng.choices(range(FAMILIES), cum_weights=weights)[0]
        private_tokens = int(min(4000.0, rng.lognormvariate(5.6, 0.9))) + 1
        beginning = lengths[family]
        yield (
            moment,
            EngineRequest(
                id=number,
                prompt_tokens=beginning * BLOCK + private_tokens,
                output_tokens=int(min(2000.0, rng.lognormvariate(5.0, 0.8))) + 1,
                shared_prefixes=tuple(range(family * 100, family * 100 + beginning)),
            ),
        )
        number += 1


def engine() -> EngineCore:
    """An 8B model on one A100, as vLLM starts it by default."""
    place = hardware.whole_gpu_hardware(catalog.products()[PRODUCT], 1)
    limits = EngineLimits(
        max_model_len=8192,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        blocks=BLOCKS,
        block_size=BLOCK,
        prefix_cache=True,
    )
    return EngineCore(limits, sources.step_time(catalog.models()[MODEL], None, place))


def simulate_day(count: int, seed: int) -> dict[str, Any]:
    """The day, and what it cost."""
    fleet = [Timeline(engine()) for _ in range(ENGINES)]
    lived, spent, sizes = DayCounts(), 0.0, list[float]()
    coming = requests(count, seed)
    # Memory is read in each quarter.
    piece = min(SLICE, -(-count // 4))
    while arrived := list(itertools.islice(coming, piece)):
        begun = time.process_time()
        for moment, request in arrived:
            timeline = fleet[request.id % ENGINES]
            _note(lived, timeline.advance(moment))
            timeline.submit(request, moment)
        spent += time.process_time() - begun
        if arrived[-1][1].id + 1 >= (len(sizes) + 1) * count / 4:
            sizes.append(_rss_mib())
            print(f"{arrived[-1][1].id + 1:>10} requests, {sizes[-1]:.1f} MiB", flush=True)
    begun = time.process_time()
    for timeline in fleet:
        _note(lived, timeline.advance(math.inf))
    spent += time.process_time() - begun
    return {
        "sim_requests": lived.served,
        "sim_requests_per_cpu_s": round(lived.served / spent),
        "sim_rss_mib": sizes[-1],
        "sim_rss_mib_quarters": sizes,
        **_fleet(fleet),
        **_latencies(lived),
    }


def _fleet(fleet: list[Timeline]) -> dict[str, Any]:
    counts = [timeline.engine.counts for timeline in fleet]
    busy = sum(timeline.busy_seconds for timeline in fleet)
    hits = sum(count.hit_tokens for count in counts)
    return {
        "sim_engines": len(fleet),
        "sim_steps": sum(count.steps for count in counts),
        "sim_busy_share": round(busy / sum(timeline.now for timeline in fleet), 3),
        "sim_hit_share": round(hits / sum(count.queried_tokens for count in counts), 3),
        "sim_preemptions": sum(count.preemptions for count in counts),
    }


def _latencies(lived: DayCounts) -> dict[str, Any]:
    return {
        "sim_ttft_mean_ms": round(lived.first_token_seconds / lived.served * 1e3, 1),
        "sim_ttft_over_2s_share": round(lived.slow_first_tokens / lived.served, 4),
        "sim_inter_token_mean_ms": round(lived.token_seconds / lived.served * 1e3, 2),
    }


def _note(lived: DayCounts, left: list[ServedRequest]) -> None:
    for served in left:
        lived.served += 1
        waited = served.ttft_seconds or 0.0
        lived.first_token_seconds += waited
        lived.slow_first_tokens += waited > 2.0
        lived.token_seconds += served.tpot_seconds or 0.0


def _rss_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith("VmRSS:"))
    return round(int(line.split()[1]) / 1024, 1)


def _live_sim(chunks: int) -> dict[str, Any]:
    """CPU of `tessera-sim` for one stream, ten of them at a time."""
    got = asyncio.run(bench.measure_processes(chunks))
    per_stream = got["cpu_microseconds_per_token"] * chunks / 1e3
    return {"live_sim_cpu_ms_per_stream": round(per_stream, 1), "live_sim_tokens": chunks}


def _speeds() -> dict[str, Any]:
    """Errors of `domain/perf` on rows that were not fitted, in percent; unknown without them.

    Root mean squares are those of a real engine's steps, by kind of model. Where the shares of a
    kind were fitted on these steps, each was predicted by a fit that left out its context.
    """
    figures = calibrate.errors()
    mapes = {name: figures.get(name) for name in ("decode_mape", "prefill_mape")}
    return mapes | rms_figures(shipped_speed_table())


def _sizing() -> dict[str, Any]:
    """CPU milliseconds of sizing all known models on all products."""
    book = prices.price_book(prices.ASSUMED, prices.list_prices(), now().date())
    products = tuple(catalog.products().values())
    started_at = time.process_time()
    for shape in catalog.models().values():
        demand = Demand(
            shape=shape,
            precision=None,
            max_model_len=min(DEFAULT_MAX_MODEL_LEN, shape.max_position_embeddings),
            input_tokens=min(1200, shape.max_position_embeddings // 2),
            output_tokens=250,
            ttft=timedelta(seconds=10),
            inter_token=timedelta(milliseconds=250),
        )
        # Quantized files have no other precision.
        precisions = (None, "fp8", "awq-int4") if shape.quantization is None else (None,)
        smallest_serving_rows(demand, products, precisions, book)
    return {"size_all_ms": round((time.process_time() - started_at) * 1e3)}


def measure(  # noqa: PLR0913 - the options of the command
    *,
    requests: int = 1_000_000,
    seed: int = 1,
    only: str = "",
    pairs: int = 120,
    searched: int = 24,
    played: int = kept_rates.REQUESTS,
    chunks: int = bench.CHUNKS,
    traces: Path = TRACES,
) -> dict[str, object]:
    """Measure a day, and what predicts speeds; or `only` one part.

    Promises are those of so many `pairs` for each kind of lengths, 0 for all; of the first
    `searched` also the largest rate is searched that is kept.
    """
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "day": lambda: simulate_day(requests, seed),
        "speeds": _speeds,
        "sim": lambda: _live_sim(chunks),
        "sizing": _sizing,
        "promises": lambda: kept_rates.figures(pairs, searched, seed, played, traces),
    }
    figures: dict[str, object] = {}
    for name, measure_part in parts.items():
        if only in ("", name):
            figures |= measure_part()
    return figures


if __name__ == "__main__":
    benchmark(
        measure,
        28,
        short={
            **{"requests": 400, "pairs": 1, "searched": 1, "played": 100, "chunks": 2},
            "traces": Path("none"),
        },
        only={"choices": ("day", "speeds", "sim", "sizing", "promises")},
        played={"help": "requests by which a promise is judged"},
        chunks={"help": "of a stream of the simulator"},
    )
