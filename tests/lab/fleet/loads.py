"""Replicas and loads for tests of the fleet."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from tessera.domain.perf.experts import ExpertsTime
from tessera.domain.perf.step import StepTime
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.trace import Trace

DENSE = StepTime(
    weights=0.013, kv_token=8.2e-8, token=5.7e-5, unoverlapped=0.45, pair=2.1e-9, fixed=0.002
)
EXPERTS = StepTime(
    weights=0.002,
    kv_token=2e-7,
    token=1e-5,
    unoverlapped=0.2,
    experts=ExpertsTime(read=0.022, unread_share=0.9, token=1e-5, unoverlapped=0.3),
    pair=1e-9,
    exchange=1e-6,
)
WINDOWED = replace(DENSE, window=256.0, windowed_token=8.2e-8, windowed_pair=2.1e-9)


def replica(step: StepTime, *, seqs: int = 16, tokens: int = 256, kv: int = 20_000) -> ReplicaModel:
    return ReplicaModel(
        step=step,
        kv_tokens=kv,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        max_model_len=8192,
        ttft=1.0,
        itl=0.05,
        lead=100.0,
        input_tokens=500,
        output_tokens=100,
    )


def trace(
    requests: Sequence[tuple[float, int, int]],
    prefixes: tuple[tuple[int, ...], ...] | None = None,
    seconds: float | None = None,
) -> Trace:
    arrivals, inputs, outputs = zip(*requests, strict=True)
    return Trace(
        name="drawn",
        seconds=arrivals[-1] + 1 if seconds is None else seconds,
        arrivals=array("d", arrivals),
        input_tokens=array("i", inputs),
        output_tokens=array("i", outputs),
        prefixes=prefixes,
    )
