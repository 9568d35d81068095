"""How many weights a language model has, from the numbers of its `config.json`."""

from dataclasses import dataclass

from tessera.domain.model.compression import compressed_attention
from tessera.domain.model.config_keys import Keys, UnsupportedConfigError
from tessera.domain.model.families import ModelFamily
from tessera.domain.model.layers import Layers, experts_of
from tessera.domain.model.states import state_of


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
    layer_embeddings: int = 0
    """Embeddings of single layers."""

    @property
    def total(self) -> int:
        return self.dense + self.expert * self.experts + self.unquantized

    @property
    def active(self) -> int:
        return self.dense + self.expert * self.active_experts + self.unquantized

    def input_embedding(self, *, pooled: bool) -> int:
        """Return the embeddings of which a step reads the rows of its tokens alone."""
        return self.layer_embeddings + (self.embedding if self.output or pooled else 0)

    @property
    def unquantized(self) -> int:
        """What formats that quantize every matrix leave at 16 bits."""
        return self.small + self.embedding + self.output + self.layer_embeddings


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
    if keys.get("kv_lora_rank"):
        # The width in the file may be that of the part with a rotary embedding.
        width = (keys.get("qk_nope_head_dim") or 0) + keys["qk_rope_head_dim"]
    if width is None and hidden % queries:
        raise UnsupportedConfigError(
            f"num_attention_heads {queries} does not divide hidden_size {hidden} and there is no "
            "head_dim; take them from the model's own config.json"
        )
    return Heads(queries=queries, keys=shared, width=width or hidden // queries)


def weights_of(keys: Keys, family: ModelFamily, heads: Heads, layers: Layers) -> Weights:
    """Count every weight by the layout of the family."""
    hidden, rows = keys["hidden_size"], keys["vocab_size"]
    tied = keys.flag("tie_word_embeddings", family.tied)
    mixers, mixers_small = _mixers(keys, family, heads, layers)
    experts = experts_of(keys)
    if layers.sparse and keys["num_experts_per_tok"] > experts:
        raise UnsupportedConfigError(
            f"num_experts_per_tok {keys['num_experts_per_tok']} is more than the {experts} "
            "experts; take both from the model's own config.json"
        )
    intermediate = keys.get("moe_intermediate_size") or keys.get("intermediate_size") or 0
    # A model of experts alone need not say how wide its other feed-forward blocks were.
    width = keys.get("intermediate_size_mlp") or keys["intermediate_size"] if layers.dense else 0
    block, block_bias = _block(keys, family, width)
    blocks = layers.dense
    if keys.flag("use_double_wide_mlp"):
        # Layers without a cache of their own have twice the width.
        blocks += layers.dense - layers.cached_full - layers.cached_windowed
    router = hidden * experts + (experts if family.expert_bias else 0)
    router += experts if family.router_correction else 0
    router += hidden if family.shared_gate else 0
    expert_bias = experts * (2 * intermediate + hidden) if family.expert_bias else 0
    shared = family.matrices * hidden * _shared_width(keys, intermediate)
    # Experts of a narrower state have a matrix into it and one out of it.
    latent = keys.get("moe_latent_size")
    shared += 2 * hidden * latent if latent else 0
    norms = (keys["num_hidden_layers"] * _norms(keys, family) + 1) * family.norm_width * hidden
    pooler = hidden * hidden if family.encoder else 0
    positions = 0
    if family.learned_positions:
        positions = keys["max_position_embeddings"] + keys["type_vocab_size"]
    return Weights(
        dense=mixers + blocks * block + layers.sparse * shared + pooler,
        expert=family.matrices * (latent or hidden) * intermediate,
        experts=layers.sparse * experts,
        active_experts=layers.sparse * (keys["num_experts_per_tok"] if layers.sparse else 0),
        small=norms
        + mixers_small
        + layers.dense * block_bias
        + layers.sparse * (router + expert_bias)
        + (rows if family.head_bias else 0)
        + (hidden if family.encoder else 0),
        embedding=(rows + positions) * hidden,
        output=0 if tied else rows * hidden,
        layer_embeddings=_layer_embeddings(keys),
    )


def _mixers(keys: Keys, family: ModelFamily, heads: Heads, layers: Layers) -> tuple[int, int]:
    """Matrices, and what else there is, of all that mixes tokens: attention and states."""
    if family.compressed:
        return compressed_attention(keys)
    if keys.get("kv_lora_rank"):
        attention, small = _latent_attention(keys, heads)
        if family.indexer:
            attention += _indexer(keys)
    else:
        attention, small = _standard_attention(keys, family, heads)
    state, state_small = _state(keys, family) if layers.recurrent else (0, 0)
    matrices = (layers.full + layers.windowed) * attention + layers.recurrent * state
    matrices += layers.full * _wider_full_attention(keys, heads)
    matrices += _layer_projections(keys)
    return matrices, (layers.full + layers.windowed) * small + layers.recurrent * state_small


def _indexer(keys: Keys) -> int:
    """Matrices of the queries, the keys and the weights that select tokens."""
    heads, width, hidden = keys["index_n_heads"], keys["index_head_dim"], keys["hidden_size"]
    return keys["q_lora_rank"] * heads * width + hidden * (width + heads)


def _state(keys: Keys, family: ModelFamily) -> tuple[int, int]:
    """Matrices and other weights of a layer with a state."""
    hidden, state = keys["hidden_size"], state_of(keys, family)
    small = state.convolved * (state.kernel + 1) + 3 * state.heads + state.width
    return hidden * (state.projected + state.width), small


def _wider_full_attention(keys: Keys, heads: Heads) -> int:
    """Matrices by which attention to every token is larger than that to a window."""
    if (width := keys.get("global_head_dim")) is None:
        return 0
    hidden, is_shared = keys["hidden_size"], keys.flag("attention_k_eq_v")
    shared_heads = (keys.get("num_global_key_value_heads") if is_shared else None) or heads.keys
    wider = heads.queries * (width - heads.width)
    values = shared_heads * width * (1 if is_shared else 2) - 2 * heads.keys * heads.width
    return hidden * (2 * wider + values)


def _layer_embeddings(keys: Keys) -> int:
    """Embeddings that each layer has of its own."""
    width, layers = keys.get("hidden_size_per_layer_input"), keys["num_hidden_layers"]
    rows = keys.get("vocab_size_per_layer_input") or keys["vocab_size"]
    return rows * layers * width if width else 0


def _layer_projections(keys: Keys) -> int:
    width, layers = keys.get("hidden_size_per_layer_input"), keys["num_hidden_layers"]
    return 3 * keys["hidden_size"] * layers * width if width else 0


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
    gate = queries if family.output_gate else 0
    other_weights = (queries + 2 * kv_width) * qkv_bias + hidden * out_bias
    head_norm = family.head_norm or ("head" if keys.flag("use_qk_norm") else "")
    if keys.model_type.startswith("cohere") and head_norm:
        head_norm = "heads"
    other_weights += {"": 0, "head": 2 * heads.width, "heads": queries + kv_width}[head_norm]
    other_weights += heads.queries if family.sinks else 0
    return hidden * (2 * queries + gate + 2 * kv_width), other_weights


def _norms(keys: Keys, family: ModelFamily) -> int:
    has_two_norms = (
        keys.flag("new_decoder_architecture") and keys.get("num_ln_in_parallel_attn") != 1
    )
    return 2 if has_two_norms else family.norms


def _shared_width(keys: Keys, intermediate: int) -> int:
    """Width of all experts that every token uses."""
    if keys.model_type == "llama4_text":
        return intermediate
    if keys.model_type.startswith("gemma4"):
        return keys["intermediate_size"]
    width = keys.get("shared_expert_intermediate_size", "shared_intermediate_size")
    if per_expert := keys.get("moe_shared_expert_intermediate_size"):
        return per_expert * (keys.get("n_shared_experts") or 0)
    return width or intermediate * (keys.get("n_shared_experts") or 0)


def _block(keys: Keys, family: ModelFamily, width: int) -> tuple[int, int]:
    """Matrices and biases of a feed-forward block without experts."""
    hidden = keys["hidden_size"]
    biased = family.mlp_bias or keys.flag("mlp_bias")
    biases = (family.matrices - 1) * width + hidden if biased else 0
    return family.matrices * hidden * width, biases
