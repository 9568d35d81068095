"""Whether the choice of the instance type ranks the types as plays do."""

import json
from pathlib import Path

from scale.ranks import Ranks, played_usd


def test_types_are_compared_where_plays_of_them_differ() -> None:
    spans = {2: 54, 1: 61}
    assert Ranks(gpu_spans=spans, usd={1: 72.0, 2: 54.0}).agree is True
    assert Ranks(gpu_spans=spans, usd={1: 54.0, 2: 72.0}).agree is False
    assert Ranks(gpu_spans=spans, usd={1: 72.0, 2: 71.0}).agree is None
    assert Ranks(gpu_spans=spans, usd={1: 72.0}).agree is None


def test_plays_of_the_product_count_by_their_mean_over_seeds(tmp_path: Path) -> None:
    run = {"case": "r1", "policy": "tessera", "disturbance": "calm", "hours": 2.0, "tuning": False}
    for seed, (gpus, usd) in enumerate([(1, 70.0), (1, 72.0), (2, 54.0), (None, 55.0)]):
        result = {"run": {**run, "gpus": gpus}, "usd": {"aws-2026": usd}}
        (tmp_path / f"tessera-{seed}.json").write_text(json.dumps(result), encoding="utf-8")
    assert played_usd(tmp_path) == {"r1": {1: 71.0, 2: 54.0}}
