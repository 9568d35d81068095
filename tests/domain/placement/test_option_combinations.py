"""Options of `spec.engine`, each valid alone, that contradict the model or one another."""

from typing import Any

import pytest

from tessera.api.reasons import Accepted
from tessera.domain.placement.checks import check
from tests.builders import MEDIUM, a_spec

EMBEDDER = "hf://BAAI/bge-m3"
NGRAM = {"method": "NGram"}
# 14 attention heads and 2 KV heads.
DRAFT = {"method": "DraftModel", "model": {"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct"}}


@pytest.mark.parametrize(
    ("uri", "engine", "field", "says"),
    [
        (EMBEDDER, {"speculation": NGRAM}, "speculation", "no tokens to draft"),
        (EMBEDDER, {"speculation": DRAFT}, "speculation", "no tokens to draft"),
        (
            MEDIUM,
            {"runner": "Pooling", "speculation": NGRAM},
            "speculation",
            "no tokens to draft",
        ),
        (
            "hf://Qwen/Qwen3-32B",
            {"speculation": DRAFT, "tensorParallelSize": 4},
            "speculation.model.uri",
            "use one of 1, 2, 14, or another draft",
        ),
    ],
)
def test_options_that_contradict_the_model_are_refused(
    uri: str, engine: dict[str, Any], field: str, says: str
) -> None:
    [denial] = check(a_spec(uri, engine=engine), {})
    assert (denial.reason, denial.field) == (
        Accepted.INVALID_ENGINE_OPTION,
        f"spec.engine.{field}",
    )
    assert says in denial.message
