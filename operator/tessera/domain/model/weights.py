"""How many weights a language model has, from the numbers of its `config.json`."""

from dataclasses import dataclass

from tessera.domain.model.config_keys import Keys, UnsupportedConfigError
from tessera.domain.model.families import ModelFamily


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The attention heads."""

    queries: int
    keys: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights by what happens to them."""

    dense: int
    """In matrices that every token uses and that are quantized with the rest."""
    expert: int
    """In the matrices of one expert of one layer."""
    experts: int
    """Experts over all layers."""
    active_experts: int
    """Of these, one token uses so many."""
    small: int
    """Norms, biases, routers and sinks, which keep 16 bits."""
    embedding: int
    output: int
    """Of the output layer; 0 where it is the embedding."""

    @property
    def total(self) -> int:
        return self.dense + self.expert * self.experts + self.unquantized

    @property
    def active(self) -> int:
        return self.dense + self.expert * self.active_experts + self.unquantized

    @property
    def unquantized(self) -> int:
        """What formats that quantize every matrix leave at 16 bits."""
        return self.small + self.embedding + self.output


def heads_of(keys: Keys, family: ModelFamily) -> Heads:
    """Return the heads; UnsupportedConfigError where the numbers contradict each other."""
    queries, hidden = keys["num_attention_heads"], keys["hidden_size"]
    shared = keys.get("num_key_value_heads") or queries
    if family.one_kv_head and not keys.flag("new_decoder_architecture"):
        shared = 1 if keys.flag("multi_query", default=True) else queries
    if shared > queries or queries % shared:
        raise UnsupportedConfigError(
            f"num_key_value_heads {shared} does not divide num_attention_heads {queries}; take "
            "both from the model's own config.json"
        )
    width = keys.get("head_dim")
    if width is None and keys.get("kv_lora_rank"):
        width = (keys.get("qk_nope_head_dim") or 0) + keys["qk_rope_head_dim"]
    if width is None and hidden % queries:
        raise UnsupportedConfigError(
            f"num_attention_heads {queries} does not divide hidden_size {hidden} and there is no "
            "head_dim; take them from the model's own config.json"
        )
    return Heads(queries=queries, keys=shared, width=width or hidden // queries)


def weights_of(keys: Keys, family: ModelFamily, heads: Heads) -> Weights:
    """Count every weight by the layout of the family."""
    hidden, layers, rows = keys["hidden_size"], keys["num_hidden_layers"], keys["vocab_size"]
    tied = keys.flag("tie_word_embeddings", family.tied)
    attention, other_weights = (
        _latent_attention(keys, heads)
        if keys.get("kv_lora_rank")
        else _standard_attention(keys, family, heads)
    )
    sparse = _sparse_layers(keys, layers)
    experts = _experts(keys)
    if sparse and keys["num_experts_per_tok"] > experts:
        raise UnsupportedConfigError(
            f"num_experts_per_tok {keys['num_experts_per_tok']} is more than the {experts} "
            "experts; take both from the model's own config.json"
        )
    intermediate = keys.get("moe_intermediate_size") or keys.get("intermediate_size") or 0
    # A model of experts alone need not say how wide its other feed-forward blocks were.
    width = (
        0 if sparse >= layers else keys.get("intermediate_size_mlp") or keys["intermediate_size"]
    )
    block, block_bias = _block(keys, family, width)
    router = hidden * experts + (experts if family.expert_bias else 0)
    router += experts if family.router_correction else 0
    router += hidden if family.shared_gate else 0
    expert_bias = experts * (2 * intermediate + hidden) if family.expert_bias else 0
    shared = family.matrices * hidden * _shared_width(keys, intermediate)
    norms = (layers * _norms(keys, family) + 1) * family.norm_width * hidden
    pooler = hidden * hidden if family.encoder else 0
    positions = 0
    if family.learned_positions:
        positions = keys["max_position_embeddings"] + keys["type_vocab_size"]
    return Weights(
        dense=layers * attention + (layers - sparse) * block + sparse * shared + pooler,
        expert=family.matrices * hidden * intermediate,
        experts=sparse * experts,
        active_experts=sparse * (keys["num_experts_per_tok"] if sparse else 0),
        small=norms
        + layers * other_weights
        + (layers - sparse) * block_bias
        + sparse * (router + expert_bias)
        + (rows if family.head_bias else 0)
        + (hidden if family.encoder else 0),
        embedding=(rows + positions) * hidden,
        output=0 if tied else rows * hidden,
    )


def _latent_attention(keys: Keys, heads: Heads) -> tuple[int, int]:
    """Matrices and norms of latent attention."""
    hidden, rank = keys["hidden_size"], keys["kv_lora_rank"]
    nope_dim, rope_dim, value_dim = (
        keys["qk_nope_head_dim"],
        keys["qk_rope_head_dim"],
        keys["v_head_dim"],
    )
    query_width = heads.queries * (nope_dim + rope_dim)
    query_rank = keys.get("q_lora_rank")
    queries = query_rank * (hidden + query_width) if query_rank else hidden * query_width
    kv_weights = hidden * (rank + rope_dim) + rank * heads.queries * (nope_dim + value_dim)
    return queries + kv_weights + heads.queries * value_dim * hidden, rank + (query_rank or 0)


def _standard_attention(keys: Keys, family: ModelFamily, heads: Heads) -> tuple[int, int]:
    """Matrices, and biases, norms and sinks, of attention by heads."""
    hidden = keys["hidden_size"]
    queries, kv_width = heads.queries * heads.width, heads.keys * heads.width
    has_bias = any(keys.flag(name) for name in ("attention_bias", "bias", "use_bias"))
    qkv_bias = has_bias or family.qkv_bias or keys.flag("qkv_bias")
    out_bias = (has_bias and not family.bias_before_heads) or family.out_bias
    other_weights = (queries + 2 * kv_width) * qkv_bias + hidden * out_bias
    head_norm = family.head_norm or ("head" if keys.flag("use_qk_norm") else "")
    if keys.model_type.startswith("cohere") and head_norm:
        head_norm = "heads"
    other_weights += {"": 0, "head": 2 * heads.width, "heads": queries + kv_width}[head_norm]
    other_weights += heads.queries if family.sinks else 0
    return 2 * hidden * (queries + kv_width), other_weights


def _norms(keys: Keys, family: ModelFamily) -> int:
    has_two_norms = (
        keys.flag("new_decoder_architecture") and keys.get("num_ln_in_parallel_attn") != 1
    )
    return 2 if has_two_norms else family.norms


def _experts(keys: Keys) -> int:
    return keys.get("num_local_experts", "num_experts", "n_routed_experts") or 0


def _sparse_layers(keys: Keys, layers: int) -> int:
    if not _experts(keys):
        return 0
    first = min(layers, max(0, keys.get("first_k_dense_replace") or 0))
    step = keys.get("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq") or 1
    dense_layers = keys.values.get("mlp_only_layers")
    dense_count = len(dense_layers) if isinstance(dense_layers, list) else 0
    return max(0, (layers - first) // max(1, step) - dense_count)


def _shared_width(keys: Keys, intermediate: int) -> int:
    """Width of all experts that every token uses."""
    if keys.model_type == "llama4_text":
        return intermediate
    width = keys.get("shared_expert_intermediate_size", "shared_intermediate_size")
    return width or intermediate * (keys.get("n_shared_experts") or 0)


def _block(keys: Keys, family: ModelFamily, width: int) -> tuple[int, int]:
    """Matrices and biases of a feed-forward block without experts."""
    hidden = keys["hidden_size"]
    biased = family.mlp_bias or keys.flag("mlp_bias")
    biases = (family.matrices - 1) * width + hidden if biased else 0
    return family.matrices * hidden * width, biases
