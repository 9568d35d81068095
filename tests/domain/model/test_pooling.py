"""What a model returns of a text, by the files of its repository."""

from typing import Any

import pytest

from tessera.api.model_files import ModelShape
from tessera.domain.model.config import UnsupportedConfig, read_config
from tessera.domain.model.pooling import SentenceTransformersFiles, pooling_task
from tessera.domain.perf.footprint import active_parameters, cache_bytes_per_token

BGE_M3 = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "vocab_size": 250_002,
    "max_position_embeddings": 8194,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "torch_dtype": "float32",
}
QWEN3_EMBEDDING = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 32_768,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151_669,
}
MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
EMBEDDER = SentenceTransformersFiles(modules=MODULES, settings={"max_seq_length": 256})


def shape_of(config: dict[str, Any], *files: SentenceTransformersFiles) -> ModelShape:
    shape = read_config(config, None, *files)
    assert isinstance(shape, ModelShape), shape
    return shape


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({}, None),
        ({"architectures": ["LlamaForCausalLM"]}, None),
        ({"architectures": ["ChatGLMModel"]}, None),
        ({"architectures": ["XLMRobertaModel"]}, "Embed"),
        ({"architectures": ["MistralModel"]}, "Embed"),
        ({"architectures": ["RobertaForMaskedLM"]}, "Embed"),
        ({"architectures": ["BertForSequenceClassification"]}, "Classify"),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 1}, "Score"),
        ({"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "a"}}, "Score"),
        ({"architectures": ["Qwen2ForProcessRewardModel"]}, "Tokens"),
        ({"architectures": ["BertForTokenClassification"]}, "Tokens"),
        (
            {
                "architectures": ["Qwen3ForSequenceClassification"],
                "classifier_from_token": ["no", "yes"],
            },
            "Score",
        ),
        ({"architectures": "XLMRobertaModel"}, None),
        ({"architectures": [None, 3]}, None),
    ],
)
def test_the_architecture_says_what_a_model_returns(
    config: dict[str, Any], task: str | None
) -> None:
    assert pooling_task(config) == task


def test_layers_that_pool_make_an_embedder_of_a_model_that_generates() -> None:
    assert pooling_task(QWEN3_EMBEDDING) is None
    assert pooling_task(QWEN3_EMBEDDING, EMBEDDER) == "Embed"
    broken: tuple[object, ...] = (None, 3, {}, [], ["x"], MODULES[:1], [{"type": 3}])
    for modules in broken:
        assert pooling_task(QWEN3_EMBEDDING, SentenceTransformersFiles(modules=modules)) is None


def test_an_encoder_has_the_published_weights_and_no_cache() -> None:
    shape = shape_of(BGE_M3)
    assert (shape.pooling, shape.encoder_only) == ("Embed", True)
    # As the repository of bge-m3 publishes them.
    assert shape.parameters == 567_754_752
    # Of words and positions only the rows of tokens are read.
    assert shape.parameters - active_parameters(shape) == (250_002 + 8194 + 1) * 1024
    assert cache_bytes_per_token(shape, 1) == 0


def test_positions_that_padding_takes_are_none_of_a_text() -> None:
    assert shape_of(BGE_M3).max_position_embeddings == 8192
    bert = {**BGE_M3, "model_type": "bert", "architectures": ["BertModel"]}
    assert shape_of(bert).max_position_embeddings == 8194


def test_a_text_is_as_long_as_the_engine_takes_from_sentence_transformers() -> None:
    assert shape_of(BGE_M3, EMBEDDER).max_position_embeddings == 256
    for length in (None, 0, -1, "8", 10**6):
        files = SentenceTransformersFiles(settings={"max_seq_length": length})
        assert shape_of(BGE_M3, files).max_position_embeddings == 8192


def test_a_decoder_that_embeds_keeps_a_cache_and_has_no_output_layer() -> None:
    generates, embeds = shape_of(QWEN3_EMBEDDING), shape_of(QWEN3_EMBEDDING, EMBEDDER)
    assert (embeds.pooling, embeds.encoder_only) == ("Embed", None)
    assert cache_bytes_per_token(embeds, 1) == cache_bytes_per_token(generates, 1) > 0
    assert active_parameters(embeds) == active_parameters(generates) - 151_669 * 1024
    untied = {**QWEN3_EMBEDDING, "tie_word_embeddings": False}
    assert shape_of(untied, EMBEDDER).parameters == embeds.parameters


@pytest.mark.parametrize("key", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_a_decoder_without_a_causal_mask_keeps_no_cache(key: dict[str, bool]) -> None:
    config = {**QWEN3_EMBEDDING, **key}
    assert shape_of(config, EMBEDDER).encoder_only
    assert shape_of(config).encoder_only is None


def test_an_encoder_for_which_the_engine_has_no_architecture_is_refused() -> None:
    unsupported = read_config({**BGE_M3, "architectures": ["XLMRobertaForCausalLM"]})
    assert isinstance(unsupported, UnsupportedConfig)
    assert "embeds, scores or classifies texts" in unsupported.message
