"""How many weights a language model has, from the numbers of its `config.json`."""

from dataclasses import dataclass

from tessera.domain.model.families import Family
from tessera.domain.model.keys import Keys, PuzzleError


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
    """In matrices that every token uses and that are quantised with the rest."""
    expert: int
    """In the matrices of one expert of one layer."""
    experts: int
    """Experts over all layers."""
    used: int
    """Of these, one token uses so many."""
    small: int
    """Norms, biases, routers and sinks, which keep 16 bits."""
    embedding: int
    output: int
    """Of the output layer; 0 where it is the embedding."""

    @property
    def whole(self) -> int:
        return self.dense + self.expert * self.experts + self.kept

    @property
    def active(self) -> int:
        return self.dense + self.expert * self.used + self.kept

    @property
    def kept(self) -> int:
        """What formats that quantise every matrix leave at 16 bits."""
        return self.small + self.embedding + self.output


def heads_of(keys: Keys, family: Family) -> Heads:
    """The heads; PuzzleError where the numbers cannot be true together."""
    queries, hidden = keys["num_attention_heads"], keys["hidden_size"]
    shared = keys.get("num_key_value_heads") or queries
    if family.one_kv_head and not keys.flag("new_decoder_architecture"):
        shared = 1 if keys.flag("multi_query", default=True) else queries
    if shared > queries or queries % shared:
        raise PuzzleError(
            f"num_key_value_heads {shared} does not divide num_attention_heads {queries}; take "
            "both from the model's own config.json"
        )
    width = keys.get("head_dim")
    if width is None and keys.get("kv_lora_rank"):
        width = (keys.get("qk_nope_head_dim") or 0) + keys["qk_rope_head_dim"]
    if width is None and hidden % queries:
        raise PuzzleError(
            f"num_attention_heads {queries} does not divide hidden_size {hidden} and there is no "
            "head_dim; take them from the model's own config.json"
        )
    return Heads(queries=queries, keys=shared, width=width or hidden // queries)


def weights_of(keys: Keys, family: Family, heads: Heads) -> Weights:
    """Every weight, counted by the layout of the family."""
    hidden, layers, rows = keys["hidden_size"], keys["num_hidden_layers"], keys["vocab_size"]
    tied = keys.flag("tie_word_embeddings", family.tied)
    attention, beside = _latent(keys, heads) if _is_latent(keys) else _plain(keys, family, heads)
    sparse = _sparse_layers(keys, layers)
    experts = _experts(keys)
    if sparse and keys["num_experts_per_tok"] > experts:
        raise PuzzleError(
            f"num_experts_per_tok {keys['num_experts_per_tok']} is more than the {experts} "
            "experts; take both from the model's own config.json"
        )
    inner = keys.get("moe_intermediate_size") or keys.get("intermediate_size") or 0
    block, block_bias = _block(keys, family, _dense_width(keys, sparse < layers))
    router = hidden * experts + (experts if family.expert_bias else 0)
    router += experts if family.router_correction else 0
    router += hidden if family.shared_gate else 0
    expert_bias = experts * (2 * inner + hidden) if family.expert_bias else 0
    shared = family.matrices * hidden * _shared_width(keys, inner)
    norms = (layers * _norms(keys, family) + 1) * family.norm_width * hidden
    return Weights(
        dense=layers * attention + (layers - sparse) * block + sparse * shared,
        expert=family.matrices * hidden * inner,
        experts=sparse * experts,
        used=sparse * (keys["num_experts_per_tok"] if sparse else 0),
        small=norms
        + layers * beside
        + (layers - sparse) * block_bias
        + sparse * (router + expert_bias)
        + (rows if family.head_bias else 0),
        embedding=rows * hidden,
        output=0 if tied else rows * hidden,
    )


def _is_latent(keys: Keys) -> bool:
    return bool(keys.get("kv_lora_rank"))


def _latent(keys: Keys, heads: Heads) -> tuple[int, int]:
    """Matrices and norms of latent attention."""
    hidden, rank = keys["hidden_size"], keys["kv_lora_rank"]
    plain, turned, value = keys["qk_nope_head_dim"], keys["qk_rope_head_dim"], keys["v_head_dim"]
    asked = heads.queries * (plain + turned)
    squeezed = keys.get("q_lora_rank")
    queries = squeezed * (hidden + asked) if squeezed else hidden * asked
    stored = hidden * (rank + turned) + rank * heads.queries * (plain + value)
    return queries + stored + heads.queries * value * hidden, rank + (squeezed or 0)


def _plain(keys: Keys, family: Family, heads: Heads) -> tuple[int, int]:
    """Matrices, and biases, norms and sinks, of attention by heads."""
    hidden = keys["hidden_size"]
    queries, stored = heads.queries * heads.width, heads.keys * heads.width
    asked = any(keys.flag(name) for name in ("attention_bias", "bias", "use_bias"))
    before = asked or family.qkv_bias or keys.flag("qkv_bias")
    after = (asked and not family.bias_before_heads) or family.out_bias
    beside = (queries + 2 * stored) * before + hidden * after
    normed = family.head_norm or ("head" if keys.flag("use_qk_norm") else "")
    if keys.kind.startswith("cohere") and normed:
        normed = "heads"
    beside += {"": 0, "head": 2 * heads.width, "heads": queries + stored}[normed]
    beside += heads.queries if family.sinks else 0
    return 2 * hidden * (queries + stored), beside


def _norms(keys: Keys, family: Family) -> int:
    two = keys.flag("new_decoder_architecture") and keys.get("num_ln_in_parallel_attn") != 1
    return 2 if two else family.norms


def _experts(keys: Keys) -> int:
    return keys.get("num_local_experts", "num_experts", "n_routed_experts") or 0


def _sparse_layers(keys: Keys, layers: int) -> int:
    """Layers with experts."""
    if not _experts(keys):
        return 0
    first = min(layers, max(0, keys.get("first_k_dense_replace") or 0))
    step = keys.get("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq") or 1
    listed = keys.found.get("mlp_only_layers")
    plain = len(listed) if isinstance(listed, list) else 0
    return max(0, (layers - first) // max(1, step) - plain)


def _dense_width(keys: Keys, needed: bool) -> int:
    """Width of feed-forward blocks without experts."""
    return (keys.get("intermediate_size_mlp") or keys["intermediate_size"]) if needed else 0


def _shared_width(keys: Keys, inner: int) -> int:
    """Width of all experts that every token uses."""
    if keys.kind == "llama4_text":
        return inner
    told = keys.get("shared_expert_intermediate_size", "shared_intermediate_size")
    return told or inner * (keys.get("n_shared_experts") or 0)


def _block(keys: Keys, family: Family, width: int) -> tuple[int, int]:
    """Matrices and biases of a feed-forward block without experts."""
    hidden = keys["hidden_size"]
    biased = family.mlp_bias or keys.flag("mlp_bias")
    biases = (family.matrices - 1) * width + hidden if biased else 0
    return family.matrices * hidden * width, biases
