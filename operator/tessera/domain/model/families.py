"""How the architectures lay out their weights, by the `model_type` of their `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

# Names that some architectures use, and the usual ones.
OLD_NAMES: Mapping[str, str] = {
    "n_layer": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
    "seq_length": "max_position_embeddings",
    "n_positions": "max_position_embeddings",
    "attention_head_dim": "head_dim",
    "top_k_experts": "num_experts_per_tok",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """What decides the number of weights besides the numbers in the configuration."""

    matrices: Literal[2, 3] = 3
    """Of a feed-forward block: in and out, or gate, up and down."""
    qkv_bias: bool = False
    out_bias: bool = False
    bias_before_heads: bool = False
    """Whether `attention_bias` means queries, keys and values, and not the matrix after them."""
    mlp_bias: bool = False
    head_bias: bool = False
    """Of the output layer."""
    head_norm: Literal["", "head", "heads"] = ""
    """Norms of queries and keys: one for all heads, or each head its own."""
    norms: int = 2
    """Of a layer."""
    norm_width: Literal[0, 1, 2] = 1
    """2 with biases, 0 where norms have no weights."""
    tied: bool = False
    """Whether the output layer is the input embedding when the configuration does not say it."""
    one_kv_head: bool = False
    """Whether `multi_query` means a single KV head."""
    sinks: bool = False
    """A learned sink for every head."""
    expert_bias: bool = False
    """Biases of experts and their router."""
    shared_gate: bool = False
    """A gate before the shared expert."""
    router_correction: bool = False
    """A number for each expert that the router adds."""
    window: Literal["", "all", "every", "chunk", "optional"] = ""
    """Which layers have the sliding window: none, all, all but every n-th, the same by chunks, or
    those from `max_window_layers` on if `use_sliding_window` is true."""
    window_interval: int = 0
    """Every so many layers one keeps all tokens, when the configuration does not say it."""
    recurrent: Literal["", "gated_delta", "mamba2"] = ""
    """What the layers without attention keep of a request."""
    one_block_per_layer: bool = False
    """Whether a layer is attention, a state or a feed-forward block, and not two of them."""
    output_gate: bool = False
    """Whether attention has a gate as wide as its queries."""
    indexer: bool = False
    """Whether each layer selects tokens by keys of their own, which it caches."""
    compressed: bool = False
    """Whether layers cache a window, and beside it an entry for several tokens at a time."""
    encoder: bool = False
    """Every token attends to all others, and the layer after the last one reads a whole text."""
    learned_positions: bool = False
    """Positions and kinds of segments have embeddings."""
    positions_after_padding: bool = False
    """Positions are counted from the id of the padding token on, so fewer are left for tokens."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Numbers that configurations leave to the architecture."""


_LLAMA = ModelFamily()
_QWEN2 = ModelFamily(qkv_bias=True, window="optional")
_QWEN3 = ModelFamily(head_norm="head", window="optional")
_GATED_DELTA = ModelFamily(
    head_norm="head", recurrent="gated_delta", output_gate=True, shared_gate=True
)
_GEMMA = ModelFamily(tied=True)
_MISTRAL = ModelFamily(window="all")
_BERT = ModelFamily(
    encoder=True,
    matrices=2,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    norm_width=2,
    tied=True,
    learned_positions=True,
    defaults={"type_vocab_size": 2},
)
_ROBERTA = replace(_BERT, positions_after_padding=True)
_DEEPSEEK = {"max_position_embeddings": 2048, "moe_layer_freq": 1}

FAMILIES: Mapping[str, ModelFamily] = {
    "llama": _LLAMA,
    "llama4_text": ModelFamily(
        window="chunk",
        window_interval=4,
        defaults={"num_local_experts": 16, "num_experts_per_tok": 1},
    ),
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "mixtral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_moe": ModelFamily(qkv_bias=True, shared_gate=True, window="optional"),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_next": _GATED_DELTA,
    "qwen3_5_text": _GATED_DELTA,
    "qwen3_5_moe_text": _GATED_DELTA,
    "gemma": _GEMMA,
    "gemma2": ModelFamily(tied=True, norms=4, window="every", window_interval=2),
    "gemma3_text": ModelFamily(
        tied=True,
        norms=4,
        head_norm="head",
        window="every",
        window_interval=6,
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
        },
    ),
    "gemma4_text": ModelFamily(
        tied=True,
        norms=4,
        head_norm="head",
        window="every",
        window_interval=6,
        defaults={"vocab_size": 262_144, "head_dim": 256, "max_position_embeddings": 131_072},
    ),
    "phi": ModelFamily(
        matrices=2,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
        norms=1,
        norm_width=2,
    ),
    "phi3": ModelFamily(window="all"),
    "phimoe": ModelFamily(qkv_bias=True, out_bias=True, head_bias=True, norm_width=2, window="all"),
    "deepseek_v2": ModelFamily(defaults=_DEEPSEEK),
    "deepseek_v3": ModelFamily(router_correction=True, defaults=_DEEPSEEK),
    "deepseek_v32": ModelFamily(router_correction=True, indexer=True, defaults=_DEEPSEEK),
    "deepseek_v4": ModelFamily(router_correction=True, sinks=True, compressed=True),
    "kimi_k2": ModelFamily(router_correction=True, defaults=_DEEPSEEK),
    "glm_moe_dsa": ModelFamily(router_correction=True, indexer=True, defaults=_DEEPSEEK),
    "mistral4": ModelFamily(),
    "gpt_oss": ModelFamily(
        qkv_bias=True,
        out_bias=True,
        sinks=True,
        expert_bias=True,
        window="every",
        window_interval=2,
        defaults={"head_dim": 64, "max_position_embeddings": 131_072},
    ),
    "minimax_m2": ModelFamily(head_norm="heads", router_correction=True),
    "nemotron_h": ModelFamily(
        matrices=2,
        norms=1,
        recurrent="mamba2",
        one_block_per_layer=True,
        router_correction=True,
    ),
    "cohere": ModelFamily(norms=1, tied=True),
    "cohere2": ModelFamily(norms=1, tied=True, window="every", window_interval=4),
    "falcon": ModelFamily(matrices=2, norms=1, norm_width=2, tied=True, one_kv_head=True),
    "starcoder2": ModelFamily(
        matrices=2,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        norm_width=2,
        tied=True,
        window="all",
    ),
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "olmo2": ModelFamily(head_norm="heads"),
    "olmo3": ModelFamily(head_norm="heads", window="every", window_interval=4),
    "olmoe": ModelFamily(head_norm="heads"),
    "smollm3": ModelFamily(tied=True),
    "glm": ModelFamily(qkv_bias=True),
    "glm4": ModelFamily(norms=4, bias_before_heads=True),
    "glm4_moe": ModelFamily(router_correction=True, bias_before_heads=True),
    "chatglm": ModelFamily(qkv_bias=True),
    "internlm2": _LLAMA,
    "internlm3": _LLAMA,
    "bert": _BERT,
    "camembert": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": ModelFamily(encoder=True, tied=True),
}
# Models of several parts and their language parts, and the family whose layers these have.
ALIASES: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "ministral3": "ministral",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
