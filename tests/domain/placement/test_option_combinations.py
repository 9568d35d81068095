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
        (
            "hf://deepseek-ai/DeepSeek-V2-Lite-Chat",
            {"kvCacheDtype": "fp8_e5m2"},
            "kvCacheDtype",
            "multi-head latent attention; use fp8",
        ),
        (EMBEDDER, {"kvCacheDtype": "fp8"}, "kvCacheDtype", "has no KV cache"),
        (EMBEDDER, {"kvOffload": {"size": "8Gi"}}, "kvOffload", "has no KV cache"),
        (EMBEDDER, {"chunkedPrefill": True}, "chunkedPrefill", "reads whole texts"),
        (EMBEDDER, {"prefixCaching": True}, "prefixCaching", "has no KV cache"),
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


@pytest.mark.parametrize(
    ("uri", "engine"),
    [
        ("hf://deepseek-ai/DeepSeek-V2-Lite-Chat", {"kvCacheDtype": "fp8"}),
        (EMBEDDER, {"chunkedPrefill": False, "prefixCaching": False, "kvCacheDtype": "Auto"}),
        # A decoder that pools the last token keeps a cache, and may read a text in chunks.
        (
            "hf://Qwen/Qwen3-Embedding-0.6B",
            {"chunkedPrefill": True, "prefixCaching": True, "kvCacheDtype": "fp8"},
        ),
    ],
)
def test_options_that_the_model_has_a_use_for_are_accepted(
    uri: str, engine: dict[str, Any]
) -> None:
    assert check(a_spec(uri, engine=engine), {}) == ()
