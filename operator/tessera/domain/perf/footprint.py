"""Memory footprint of a model: its weights and the KV cache of its tokens."""

from typing import Literal

from tessera.api.model_files import ModelShape
from tessera.domain.model.quantization import MXFP4_GROUP, NVFP4_GROUP, PRECISION_FORMATS

# Bits of one number in the KV cache: 8 with `--kv-cache-dtype fp8`.
KvBits = Literal[8, 16]
_SCALE_BITS = 16
# Bits of a scale in the 4-bit floating formats.
_BLOCK_SCALE_BITS = 8
# Weights that share a scale in 4-bit quantization, unless the files say otherwise.
_GROUP_SIZE = 128
_GROUP_SIZES = {"nvfp4": NVFP4_GROUP, "mxfp4": MXFP4_GROUP}
_FP4_FORMATS = ("mxfp4", "nvfp4")
# Formats that store a zero point beside each scale, in as many bits as a weight.
_ZERO_POINT_FORMATS = ("awq", "gptq", "awq-int4", "gptq-int4")
# Rows of the output layer in the largest known vocabularies.
LARGEST_VOCABULARY = 262_144
# vLLM groups layers of two kinds of cache by the smaller number of the two, unless the larger
# number is less than this many times as large.
_MAX_PADDING_RATIO = 1.5
# Tokens by whose multiple blocks grow until they hold a state.
_BLOCK_TOKENS = 16
_STATES_PER_REQUEST = 2
# Sparse latent attention: 8-bit keys of an indexer with a scale for each group, and latent vectors
# of 8 bits with their scales and a part of 16 bits.
_INDEXER_GROUP, _SCALE_BYTES = 128, 4
_SPARSE_LATENT_BYTES = 656
# An entry of compressed attention at 8 bits, with its scales and a part of 16 bits, for its values.
_ENTRY_BYTES, _ENTRY_VALUES = 584, 512


def weight_bytes(parameters: int, bits: int) -> int:
    """Return the bytes of so many weights: parameters x bits / 8."""
    return parameters * bits // 8


def weight_bits(shape: ModelShape, precision: str | None) -> int:
    """Return the bits of one weight in memory; `precision` None means as in the files."""
    if precision is None:
        return shape.bits_per_weight
    if precision in ("fp8", "int8"):
        return min(8, shape.bits_per_weight)
    return min(4 if precision in PRECISION_FORMATS else 16, shape.bits_per_weight)


def is_stored_in(shape: ModelShape, precision: str | None) -> bool:
    """Return whether the shape is that of files in a precision; None means as in the files."""
    return precision is None or shape.quantization in PRECISION_FORMATS.get(precision, ())


def stored_shape(shape: ModelShape, precision: str) -> ModelShape:
    """Return the usual shape of a model's files in a precision with files of its own."""
    bits = weight_bits(shape, precision)
    update = {
        "quantization": PRECISION_FORMATS[precision][0],
        "bits_per_weight": bits,
        "group_size": _GROUP_SIZES.get(precision, _GROUP_SIZE) if bits == 4 else None,
        "weight_bytes": None,
    }
    return shape.model_copy(update=update)


def computes_in_fp8(shape: ModelShape, precision: str | None) -> bool:
    """Return whether the layers compute at 8 bits on hardware that has 8-bit arithmetic."""
    return precision == "fp8" or (precision is None and shape.quantization == "fp8")


def cache_bits(shape: ModelShape, kv_bits: KvBits | None) -> KvBits:
    """Return the bits of a value in the KV cache, given those that an option sets."""
    return kv_bits or shape.kv_cache_bits or 16


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, bits: int = 16) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return 2 * layers * kv_heads * head_dim * bits // 8


def resident_bytes(shape: ModelShape, precision: str | None) -> int:
    """Return the bytes of all weights in memory, summed over all devices of a replica."""
    if is_stored_in(shape, precision) and shape.weight_bytes is not None:
        return shape.weight_bytes
    return _stored_bytes(shape, precision, shape.parameters, _unquantized(shape))


def hidden_size(shape: ModelShape) -> int:
    """Return the width of a token's activations between layers."""
    return shape.hidden_size or shape.attention_heads * shape.head_dim


def feed_forward(shape: ModelShape, parameters: int) -> int:
    """Return the width between the feed-forward matrices, which hold the rest of so many weights.

    The shape has none of its own; embeddings count as feed-forward weights.
    """
    hidden = hidden_size(shape)
    attention = 2 * hidden * (shape.attention_heads + shape.kv_heads) * shape.head_dim
    return max(0, -(-parameters // shape.layers) - attention) // (3 * hidden)


def vocabulary(shape: ModelShape) -> int:
    """Return the words of the vocabulary; the most of known models where the shape has none."""
    return shape.vocab_size or LARGEST_VOCABULARY


def active_parameters(shape: ModelShape) -> int:
    """Return the number of weights that compute one token: no input embedding, no idle experts."""
    return (shape.active_parameters or shape.parameters) - _input_embedding(shape)


def batch_read_bytes(shape: ModelShape, precision: str | None) -> int:
    """Return the bytes of weights that a step of many tokens reads, over all devices."""
    # Of a separate input embedding only the rows of the step's tokens are read.
    return resident_bytes(shape, precision) - weight_bytes(_input_embedding(shape), 16)


def single_token_read_bytes(shape: ModelShape, precision: str | None) -> int:
    """Return the bytes of weights that a step of a single token reads, over all devices."""
    if shape.active_parameters is None:
        return batch_read_bytes(shape, precision)
    embedding = _input_embedding(shape)
    active_weights = shape.active_parameters
    unquantized = min(active_weights, _unquantized(shape)) - embedding
    return _stored_bytes(shape, precision, active_weights - embedding, unquantized)


def _input_embedding(shape: ModelShape) -> int:
    """Return the number of weights of the input embedding; 0 when it is shared or not known."""
    # The output layer is as large, so the embedding is never more than half.
    return min(shape.embedding_parameters or 0, _unquantized(shape), shape.parameters // 2)


def _unquantized(shape: ModelShape) -> int:
    """Return the number of weights that stay in 16 bits under every quantization."""
    return min(shape.parameters, shape.unquantized_parameters or 0)


def _stored_bytes(
    shape: ModelShape, precision: str | None, parameters: int, unquantized: int
) -> int:
    bits = weight_bits(shape, precision)
    if bits >= 16:
        return weight_bytes(parameters, bits)
    quantized = parameters - unquantized
    return (
        weight_bytes(unquantized, 16)
        + weight_bytes(quantized, bits)
        + _scale_bytes(shape, precision, bits, quantized)
    )


def _scale_bytes(shape: ModelShape, precision: str | None, bits: int, quantized: int) -> int:
    """Return the bytes of the scales and zero points of weight groups."""
    # Scales of whole rows and blocks are too few to count: `group` is None for these.
    stored = is_stored_in(shape, precision)
    quantization = shape.quantization if stored else precision
    usual = _GROUP_SIZES.get(precision or "", _GROUP_SIZE) if bits == 4 else None
    group = shape.group_size if stored else usual
    if group is None:
        return 0
    scale = _BLOCK_SCALE_BITS if quantization in _FP4_FORMATS else _SCALE_BITS
    zero = bits if quantization in _ZERO_POINT_FORMATS else 0
    return weight_bytes(-(-quantized // group), scale + zero)


def cache_bytes_per_token(shape: ModelShape, devices: int, kv_bits: int = 16) -> int:
    """Return the bytes of one token's KV cache on each of `devices`, when every layer stores it."""
    layers = _cached_layers(shape)
    sliding = min(layers, shape.sliding_layers or 0)
    full = (layers - sliding) * _row_bytes(shape, devices, kv_bits, windowed=False)
    windowed = sliding * _row_bytes(shape, devices, kv_bits, windowed=True)
    return full + windowed + _compressed_bytes(shape, kv_bits)


def windowed_bytes_per_token(shape: ModelShape, devices: int) -> int:
    """Return the part of `cache_bytes_per_token` of layers with a window, at 16 bits."""
    sliding = min(_cached_layers(shape), shape.sliding_layers or 0)
    return sliding * _row_bytes(shape, devices, 16, windowed=True)


def windowed_share(shape: ModelShape) -> float:
    """Return the share of layers with attention that attend to a window."""
    layers = _cached_layers(shape)
    return min(1.0, (shape.sliding_layers or 0) / layers) if layers else 0.0


def cache_bytes(
    shape: ModelShape, tokens: int, devices: int, kv_bits: int = 16, step_tokens: int = 0
) -> int:
    """Return the bytes of a request's KV cache and states on each of `devices`.

    Layers with a sliding window store no more than the window and the `step_tokens` of one step.
    """
    layers, row = _cached_layers(shape), _row_bytes(shape, devices, kv_bits, windowed=False)
    compressed = _compressed_bytes(shape, kv_bits)
    if shape.state_layers is not None and shape.state_bytes is not None:
        return _bytes_with_states(shape, tokens, devices, row) + compressed * tokens
    if shape.sliding_window is None or shape.sliding_layers is None:
        return (layers * row + compressed) * tokens
    sliding, full = _layer_groups(layers, min(layers, shape.sliding_layers))
    cached = min(tokens, shape.sliding_window + step_tokens)
    windowed_row = _row_bytes(shape, devices, kv_bits, windowed=True)
    return (full * row + compressed) * tokens + sliding * windowed_row * cached


def state_bytes(shape: ModelShape, devices: int) -> int:
    """Return the bytes of a request's states on each of `devices`, which every step updates."""
    return (shape.state_layers or 0) * -(-(shape.state_bytes or 0) // devices)


def attention_layers(shape: ModelShape) -> int:
    """Return the number of layers in which a token attends to those before it."""
    return shape.layers if shape.state_layers is None else _cached_layers(shape)


def _bytes_with_states(shape: ModelShape, tokens: int, devices: int, row: int) -> int:
    """Return the bytes of a request whose layers have keys and values, or states.

    A state takes as much as a block of keys and values, which holds as many tokens as it needs for
    that, and a request has two states where prefixes are cached, which is the default.
    """
    states, state = shape.state_layers or 0, state_bytes(shape, devices)
    if not row or not _cached_layers(shape):
        return _STATES_PER_REQUEST * state
    block_tokens = -(-(state // states) // (row * _BLOCK_TOKENS)) * _BLOCK_TOKENS
    attention, states = _layer_groups(_cached_layers(shape) + states, _cached_layers(shape))
    blocks = attention * -(-tokens // block_tokens) + _STATES_PER_REQUEST * states
    return blocks * block_tokens * row


def _cached_layers(shape: ModelShape) -> int:
    if shape.encoder_only:
        return 0
    return shape.layers if shape.cached_layers is None else shape.cached_layers


def _row_bytes(shape: ModelShape, devices: int, kv_bits: int, *, windowed: bool) -> int:
    """Return the bytes of one token in one layer on one device."""
    if shape.latent_dim is not None:
        # Multi-head latent attention: every device has the whole latent vector.
        latent = shape.latent_dim * kv_bits // 8
        if shape.compressed_values is not None:
            return _entry_bytes(shape.latent_dim, kv_bits)
        if shape.indexer_dim is None:
            return latent
        scales = _SCALE_BYTES * -(-shape.indexer_dim // _INDEXER_GROUP)
        return max(latent, _SPARSE_LATENT_BYTES) + shape.indexer_dim + scales
    kv_heads, head_dim = shape.kv_heads, shape.head_dim
    if not windowed:
        kv_heads = shape.full_kv_heads or kv_heads
        head_dim = shape.full_head_dim or head_dim
    # With fewer KV heads than devices, each device has a copy of one.
    heads = max(1, -(-kv_heads // devices))
    return kv_bytes_per_token(1, heads, head_dim, kv_bits)


def _compressed_bytes(shape: ModelShape, kv_bits: int) -> int:
    """Return the bytes of one token in the entries that stand for several tokens."""
    return _entry_bytes(shape.compressed_values or 0, kv_bits)


def _entry_bytes(values: int, kv_bits: int) -> int:
    if kv_bits == 8:
        return -(-values * _ENTRY_BYTES // _ENTRY_VALUES)
    return values * kv_bits // 8


def _layer_groups(layers: int, first: int) -> tuple[int, int]:
    """Return the layers of the first and of the other kind that take memory, padding included."""
    # vLLM allocates both kinds in groups of equal size and pads the last group.
    others = layers - first
    if not others or not first:
        return first, others
    least, most = sorted((others, first))
    group_layers = most if most < _MAX_PADDING_RATIO * least else least
    return -(-first // group_layers) * group_layers, -(-others // group_layers) * group_layers
