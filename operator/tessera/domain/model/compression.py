"""Attention to a window and to entries that stand for several tokens each, as in DeepSeek-V4.

Every layer caches the last tokens of a window. A layer with a ratio of 4 also caches an entry for
each 4 tokens, of which an indexer selects some by narrower entries of its own; one with a ratio of
128 an entry for each 128 tokens. An entry is the key and the value of all heads.
"""

from collections.abc import Mapping, Sequence

from tessera.domain.model.config_keys import Keys, UnsupportedConfigError

_SELECTED, _HEAVY = 4, 128
_RATIOS: Mapping[str, int] = {
    "sliding_attention": 0,
    "compressed_sparse_attention": _SELECTED,
    "heavily_compressed_attention": _HEAVY,
}


def compressed_values(keys: Keys) -> int:
    """Return the values that all layers cache per token, beside their windows."""
    selected, heavy = _counts(keys)
    entry = keys["head_dim"]
    return selected * (entry + keys["index_head_dim"]) // _SELECTED + heavy * entry // _HEAVY


def compressed_attention(keys: Keys) -> tuple[int, int]:
    """Return the matrices and the other weights of attention in all layers."""
    hidden, entry, queries = keys["hidden_size"], keys["head_dim"], keys["num_attention_heads"]
    query_rank, out_rank, groups = keys["q_lora_rank"], keys["o_lora_rank"], keys["o_groups"]
    indexed, indexers = keys["index_head_dim"], keys["index_n_heads"]
    selected, heavy = _counts(keys)
    layer = query_rank * (hidden + queries * entry) + hidden * entry
    layer += out_rank * (queries * entry + groups * hidden)
    # Two series overlap where an indexer selects, and each value has a gate.
    indexer = 4 * hidden * indexed + indexers * (query_rank * indexed + hidden)
    matrices = keys["num_hidden_layers"] * layer
    matrices += selected * (4 * hidden * entry + indexer) + heavy * 2 * hidden * entry
    small = keys["num_hidden_layers"] * (query_rank + entry + queries)
    return matrices, small + _connections(keys)


def _connections(keys: Keys) -> int:
    """Return the weights that mix the parallel streams before and after each block."""
    streams = keys["hc_mult"]
    mixed = (2 + streams) * streams
    return 2 * keys["num_hidden_layers"] * mixed * (streams * keys["hidden_size"] + 1)


def _counts(keys: Keys) -> tuple[int, int]:
    """Return how many layers have an entry for 4 tokens, and for 128."""
    ratios = _ratios(keys)
    if len(ratios) != keys["num_hidden_layers"] or {*ratios} - {*_RATIOS.values()}:
        raise UnsupportedConfigError(
            f"compress_ratios has no 0, {_SELECTED} or {_HEAVY} for each of num_hidden_layers "
            f"{keys['num_hidden_layers']}; take both from the model's own config.json"
        )
    return ratios.count(_SELECTED), ratios.count(_HEAVY)


def _ratios(keys: Keys) -> Sequence[object]:
    """Return the ratio of each layer; those of prediction layers follow in some files."""
    kinds, ratios = keys.values.get("layer_types"), keys.values.get("compress_ratios")
    layers = keys["num_hidden_layers"]
    if isinstance(kinds, list):
        return [_RATIOS.get(str(kind)) for kind in kinds]
    if isinstance(ratios, list):
        return [ratio if isinstance(ratio, int) else None for ratio in ratios[:layers]]
    return ()
