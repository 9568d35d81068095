"""A service with `--hf-overrides`: its context, and keys that only a shape can say."""

import json
from typing import Any

import pytest

from tessera.domain.observed.snapshot import Ref
from tessera.domain.placement.checks import check, needs_long_context, shape_of
from tessera.domain.vllm.outdated_flags import OLD_FLAGS
from tests.builders import a_node, a_pool, a_service, a_snapshot, a_spec, plan_of

QWEN = "hf://Qwen/Qwen2.5-7B-Instruct"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DOTTED = [
    word for key, value in YARN.items() for word in (f"--hf-overrides.rope_scaling.{key}", value)
]
SHAPE = {
    "parameters": 1_000_000_000,
    "layers": 4,
    "attentionHeads": 28,
    "kvHeads": 4,
    "headDim": 128,
    "maxPositionEmbeddings": 8192,
}


def long_spec(*arguments: object, length: int = 131_072, **model: Any) -> Any:
    engine = {"extraArgs": [str(argument) for argument in arguments]}
    return a_spec(
        QWEN, engine=engine, context={"maxModelLen": length}, model={"uri": QWEN, **model}
    )


def refusals(spec: Any) -> list[str]:
    return [denial.sentence for denial in check(spec, {})]


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--hf-overrides={json.dumps({'rope_scaling': YARN})}"],
        [f"--hf_overrides={json.dumps({'rope_parameters': YARN})}"],
        ["--hf-overrides", json.dumps({"rope_parameters": YARN})],
        DOTTED,
    ],
)
def test_a_context_that_overrides_extend_is_accepted_and_planned(arguments: list[object]) -> None:
    spec = long_spec(*arguments)
    assert refusals(spec) == []
    assert needs_long_context(spec, 131_072)
    snapshot = a_snapshot(a_service(spec=spec), pools=(a_pool(),), nodes=(a_node(whole=2),))
    placement = plan_of(snapshot).service_plans[Ref("team-a", "chat")].placement
    assert placement.choice is not None, placement.verdict
    assert placement.choice.fit.max_model_len == 131_072
    assert placement.choice.fit.memory.kv_tokens >= 131_072


def test_a_context_of_a_part_that_the_model_has_not_is_refused() -> None:
    nested = {"text_config": {"rope_parameters": YARN}}
    (message,) = refusals(long_spec(f"--hf-overrides={json.dumps(nested)}"))
    assert "131072 exceeds the model's limit of 32768 tokens" in message


def test_the_place_that_the_message_names_extends_the_context_of_a_model_with_media() -> None:
    uri = "hf://mistralai/Mistral-Small-3.1-24B-Instruct-2503"
    yarn = {"rope_parameters": YARN | {"factor": 8.0}}
    (message,) = refusals(long_spec(f"--hf-overrides={json.dumps(yarn)}", length=262_144, uri=uri))
    assert "rope_parameters in --hf-overrides" in message
    assert "within text_config where it reads media" in message
    nested = json.dumps({"text_config": yarn})
    assert refusals(long_spec(f"--hf-overrides={nested}", length=262_144, uri=uri)) == []


def test_a_model_without_its_media_has_the_context_of_its_text() -> None:
    nested = {"text_config": {"rope_parameters": YARN | {"factor": 8.0}}}
    uri = "hf://mistralai/Mistral-Small-3.1-24B-Instruct-2503"
    arguments = ["--language-model-only", f"--hf-overrides={json.dumps(nested)}"]
    spec = long_spec(*arguments, length=262_144, uri=uri)
    assert refusals(spec) == []
    assert needs_long_context(spec, 262_144)


def test_a_context_beyond_that_of_the_overrides_is_refused() -> None:
    (message,) = refusals(
        long_spec(f"--hf-overrides={json.dumps({'rope_scaling': YARN})}", length=131_073)
    )
    assert "131073 exceeds the model's limit of 131072 tokens" in message


def test_what_the_old_flag_is_told_to_write_is_accepted() -> None:
    messages = refusals(long_spec(f"--rope-scaling={json.dumps(YARN)}"))
    assert any("use --hf-overrides: write '{\"rope_parameters\": {...}}'" in m for m in messages)
    assert '"rope_theta"' in OLD_FLAGS["--rope-scaling"].advice
    written = {"rope_parameters": {**YARN, "rope_theta": 1_000_000.0}}
    assert refusals(long_spec(f"--hf-overrides={json.dumps(written)}")) == []


def test_other_keys_need_the_shape_that_they_make() -> None:
    argument = '--hf-overrides={"num_hidden_layers": 4}'
    (message,) = refusals(long_spec(argument, length=1024))
    assert "--hf-overrides: num_hidden_layers may change" in message
    assert "write spec.model.shape" in message
    spec = long_spec(argument, length=1024, shape=SHAPE)
    assert refusals(spec) == []
    shape = shape_of(spec)
    assert shape is not None
    assert (shape.layers, shape.max_position_embeddings) == (4, 8192)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ("[1, 2]", "--hf-overrides [1, 2] is no JSON object; write one with keys of the model's"),
        ("7", "--hf-overrides 7 is no JSON object"),
        ('{"max_position_embeddings": NaN}', "max_position_embeddings nan is no whole number"),
        ('{"max_position_embeddings": -1}', "max_position_embeddings -1 is no whole number"),
        ('{"text_config": {"model_max_length": "8k"}}', "model_max_length '8k' is no whole number"),
        ('{"rope_scaling": {"type": "linear", "factor": -4}}', "rope_scaling: factor -4 of linear"),
    ],
)
def test_overrides_that_no_engine_reads_are_refused(overrides: str, fault: str) -> None:
    (message,) = refusals(long_spec(f"--hf-overrides={overrides}", length=1024))
    assert message.startswith("spec.engine.extraArgs: --hf-overrides")
    assert fault in message


@pytest.mark.parametrize(
    ("arguments", "media"),
    [
        ([], True),
        (["--language-model-only"], False),
        (["--limit-mm-per-prompt", '{"image": 0, "video": 0, "audio": 0}'], False),
        (['--limit-mm-per-prompt={"image": {"count": 0}, "video": 0, "audio": 0}'], False),
        (["--limit-mm-per-prompt.image=0", "--limit-mm-per-prompt.video=2"], True),
        (['--limit-mm-per-prompt={"image": 0, "video": 0}'], True),
        (["--no-language-model-only"], True),
    ],
)
def test_an_engine_without_media_loads_none_of_their_weights(
    arguments: list[str], media: bool
) -> None:
    shape = shape_of(
        long_spec(*arguments, length=8192, shape={**SHAPE, "mediaParameters": 600_000_000})
    )
    assert shape is not None
    assert shape.parameters == (1_000_000_000 if media else 400_000_000)
