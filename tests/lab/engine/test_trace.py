"""A public trace with block names drives the machine: Mooncake's conversations."""

import gzip
import json
import math
from pathlib import Path

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest

TRACE = Path(__file__).parents[4] / "shared/traces/mooncake_conversation.jsonl.gz"
# Tokens that one of its names covers.
NAMED = 512
ROWS = 3000

pytestmark = pytest.mark.skipif(not TRACE.exists(), reason="needs ../shared/traces")


def _rows() -> list[tuple[float, EngineRequest]]:
    rows = []
    with gzip.open(TRACE, "rt", encoding="utf-8") as file:
        for number, line in zip(range(ROWS), file, strict=False):
            row = json.loads(line)
            request = EngineRequest(
                id=number,
                prompt_tokens=row["input_length"],
                output_tokens=row["output_length"],
                shared_prefixes=tuple(row["hash_ids"][: row["input_length"] // NAMED]),
            )
            rows.append((row["timestamp"] / 1000, request))
    return rows


def _replay(blocks: int) -> Timeline:
    limits = EngineLimits(
        max_model_len=131_072,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        blocks=blocks,
        prefix_cache=True,
        shared_tokens=NAMED,
    )
    speed = StepTime(weights=4e-3, kv_token=1e-8, token=4e-6)
    timeline, served = Timeline(EngineCore(limits, speed)), 0
    for moment, request in _rows():
        served += len(timeline.advance(moment))
        assert timeline.submit(request, moment) is None
    served += len(timeline.advance(math.inf))
    assert served == ROWS
    assert timeline.engine.free_blocks == blocks - 1
    return timeline


def test_with_memory_for_everything_all_that_was_there_before_is_found() -> None:
    known, expected_hits = set[int](), 0
    for _, request in _rows():
        names = request.shared_prefixes[: (request.prompt_tokens - 1) // NAMED]
        first_new = next(
            (index for index, name in enumerate(names) if name not in known), len(names)
        )
        expected_hits += first_new * NAMED
        known.update(request.shared_prefixes)
    assert _replay(10_000_000).engine.counts.hit_tokens == expected_hits


def test_with_the_memory_of_one_gpu_far_less_is_found() -> None:
    plenty, little = _replay(10_000_000).engine.counts, _replay(29_000).engine.counts
    assert little.queried_tokens == plenty.queried_tokens
    assert 0 < little.hit_tokens < plenty.hit_tokens / 2
