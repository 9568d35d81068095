"""What the engine of a spec does: by its runner, its model and overrides of its configuration."""

import json
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Accepted
from tessera.domain.placement.checks import check, pooling_task
from tests.builders import SMALL, a_spec

SHAPE = {
    "parameters": 8_000_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 4,
    "headDim": 16,
    "maxPositionEmbeddings": 8192,
}
RERANKER = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}


def spec_of(shape: dict[str, Any], **engine: Any) -> InferenceServiceSpec:
    model = {"uri": "hf://acme/own", "shape": {**SHAPE, **shape}}
    return a_spec(model=model, engine=engine)


@pytest.mark.parametrize(
    ("shape", "engine", "task"),
    [
        ({}, {}, None),
        ({}, {"runner": "Auto"}, None),
        ({}, {"runner": "Pooling"}, "Embed"),
        ({"pooling": "Score"}, {}, "Score"),
        ({"pooling": "Score"}, {"runner": "Auto"}, "Score"),
        ({"pooling": "Score"}, {"runner": "Pooling"}, "Score"),
        ({"pooling": "Embed"}, {"runner": "Generate"}, None),
        ({}, {"extraArgs": [f"--hf-overrides={json.dumps(RERANKER)}"]}, "Score"),
        ({}, {"extraArgs": ["--hf_overrides", '{"rope_theta": 1}']}, None),
        ({"pooling": "Embed"}, {"extraArgs": ["--hf-overrides", '{"rope_theta": 1}']}, "Embed"),
        ({}, {"extraArgs": ["--hf-overrides", "x"]}, None),
        (
            {},
            {"version": "0.99.0", "extraArgs": [f"--hf-overrides={json.dumps(RERANKER)}"]},
            "Score",
        ),
    ],
)
def test_the_model_decides_unless_the_runner_does(
    shape: dict[str, Any], engine: dict[str, Any], task: str | None
) -> None:
    assert pooling_task(spec_of(shape, **engine)) == task


def test_without_a_shape_the_runner_alone_decides() -> None:
    unknown = {"uri": "hf://acme/unknown"}
    assert pooling_task(a_spec(model=unknown)) is None
    assert pooling_task(a_spec(model=unknown, engine={"runner": "Pooling"})) == "Embed"
    assert pooling_task(a_spec(model={"uri": SMALL})) is None


@pytest.mark.parametrize(
    ("shape", "engine", "words"),
    [
        ({"pooling": "Embed", "encoderOnly": True}, {}, None),
        ({"encoderOnly": True}, {"runner": "Pooling"}, None),
        ({"pooling": "Embed"}, {"runner": "Generate"}, None),
        ({"pooling": "Embed", "encoderOnly": True}, {"runner": "Generate"}, "set Pooling"),
        ({"encoderOnly": True}, {}, "write spec.model.shape.pooling beside"),
        ({"pooling": "Score"}, {"runner": "Generate"}, "shape has pooling Score generates no text"),
        (
            {"pooling": "Score"},
            {
                "runner": "Generate",
                "extraArgs": ['--hf-overrides={"architectures": ["Qwen3ForCausalLM"]}'],
            },
            None,
        ),
    ],
)
def test_an_encoder_or_a_classifier_generates_nothing(
    shape: dict[str, Any], engine: dict[str, Any], words: str | None
) -> None:
    denials = check(spec_of(shape, **engine), {})
    assert [denial.reason for denial in denials] == [Accepted.RUNNER_MISMATCH] * bool(words)
    assert all(words in denial.sentence for denial in denials if words)


def test_a_step_of_a_pooling_model_holds_its_longest_text() -> None:
    short = {"maxNumBatchedTokens": 4096}
    [denial] = check(spec_of({"pooling": "Embed"}, **short), {})
    assert denial.sentence == (
        "spec.engine.maxNumBatchedTokens: 4096 holds no prompt of 8192 tokens, and a pooling model "
        "reads whole texts; set at least 8192, or lower spec.context.maxModelLen"
    )
    assert check(spec_of({}, **short), {}) == ()
    assert check(spec_of({"pooling": "Embed"}, maxNumBatchedTokens=8192), {}) == ()
