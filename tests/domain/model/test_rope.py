"""How long a context files allow, and which engines need a variable for it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ModelShape
from tessera.domain.model.config import UnsupportedConfig, read_config
from tests.domain.model.test_config import config_of, error_message, expect_shape

QWEN = "Qwen/Qwen2.5-7B-Instruct"
YARN = {"factor": 4.0, "original_max_position_embeddings": 32_768}


def lengths(**keys: Any) -> tuple[int, int | None]:
    shape = expect_shape(read_config(config_of(QWEN, **keys)))
    return shape.max_position_embeddings, shape.derived_positions


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("word", ["type", "rope_type"])
def test_yarn_extends_the_context_in_every_spelling(key: str, word: str) -> None:
    assert lengths(**{key: {word: "yarn", **YARN}}) == (131_072, 32_768)


def test_yarn_without_its_original_length_extends_the_declared_one() -> None:
    assert lengths(rope_scaling={"rope_type": "yarn", "factor": 2.0}) == (65_536, 32_768)


def test_a_context_that_is_extended_already_is_not_extended_again() -> None:
    rope = {"rope_type": "yarn", **YARN}
    assert lengths(max_position_embeddings=131_072, rope_scaling=rope) == (131_072, None)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 65_536),
        ({"type": "dynamic", "factor": 4.0}, 131_072),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 32_768),
        ({"type": "su", "short_factor": [1.0], "long_factor": [1.0]}, 32_768),
        ({"rope_type": "longrope", "original_max_position_embeddings": 4096}, 32_768),
        ({"rope_type": "default", "rope_theta": 1e6}, 32_768),
        ({"mrope_section": [16, 24, 24], "type": "mrope"}, 32_768),
    ],
)
def test_other_embeddings_reach_what_the_engine_derives(
    rope: dict[str, Any], expected: int
) -> None:
    assert lengths(rope_parameters=rope) == (expected, None)


@pytest.mark.parametrize(
    "factor", [0, -4, 1e9, float("inf"), float("nan"), "4.0", [4], True], ids=repr
)
@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
def test_a_factor_that_is_none_is_refused_and_named(kind: str, factor: object) -> None:
    config = config_of(QWEN, rope_scaling={"rope_type": kind, "factor": factor})
    message = error_message(read_config(config))
    assert message.startswith(f"rope_scaling: factor {factor!r} of {kind} is no number above 0")


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
def test_a_factor_of_null_is_that_of_an_engine(kind: str) -> None:
    assert lengths(rope_scaling={"rope_type": kind, "factor": None}) == (32_768, None)


@pytest.mark.parametrize("last", ["full_attention", "sliding_attention"])
def test_a_kind_of_layers_without_a_factor_takes_none_from_the_others(last: str) -> None:
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_type": "default"},
    }
    kinds[last] = kinds.pop(last)
    assert lengths(rope_parameters=kinds) == (262_144, None)


def test_the_factor_of_a_nested_configuration_multiplies_nothing() -> None:
    config = {"text_config": config_of(QWEN, rope_scaling={"type": "linear", "factor": 8.0})}
    shape = expect_shape(read_config(config, 16_000_000_000))
    assert (shape.max_position_embeddings, shape.derived_positions) == (32_768, None)


def test_kinds_of_layers_have_embeddings_of_their_own() -> None:
    rope = {"full_attention": {"rope_type": "yarn", **YARN}, "sliding_attention": None}
    assert lengths(rope_parameters=rope) == (131_072, 32_768)


def test_a_length_that_stands_beside_the_positions_comes_first() -> None:
    assert lengths(model_max_length=131_072) == (131_072, None)


_rope = st.dictionaries(
    st.sampled_from(["type", "rope_type", "factor", "original_max_position_embeddings", "full"]),
    st.none()
    | st.integers()
    | st.floats()
    | st.sampled_from(["yarn", "linear", "longrope"])
    | st.dictionaries(st.just("factor"), st.floats()),
)


@given(_rope)
def test_no_embedding_of_a_stranger_raises(rope: dict[str, Any]) -> None:
    shape = read_config(config_of(QWEN, rope_scaling=rope))
    assert isinstance(shape, ModelShape | UnsupportedConfig)


@given(st.sampled_from(["yarn", "linear", "llama3"]), st.integers(1, 64), st.integers(1, 10**6))
def test_a_factor_never_shortens_a_context(kind: str, factor: int, original: int) -> None:
    rope = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    longest, derived = lengths(rope_scaling=rope)
    assert 32_768 <= (derived or longest) <= longest
