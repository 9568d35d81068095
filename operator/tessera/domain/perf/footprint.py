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
# vLLM groups layers with and without a window by the smaller number of the two, unless the larger
# number is less than this many times as large.
_MAX_PADDING_RATIO = 1.25


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


def _is_stored_in(shape: ModelShape, precision: str | None) -> bool:
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
    if _is_stored_in(shape, precision) and shape.weight_bytes is not None:
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
    stored = _is_stored_in(shape, precision)
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
    return shape.layers * _row_bytes(shape, devices, kv_bits)


def cache_bytes(
    shape: ModelShape, tokens: int, devices: int, kv_bits: int = 16, step_tokens: int = 0
) -> int:
    """Return the bytes of a request's KV cache on each of `devices`.

    Layers with a sliding window store no more than the window and the `step_tokens` of one step.
    """
    row = _row_bytes(shape, devices, kv_bits)
    if shape.sliding_window is None or shape.sliding_layers is None:
        return shape.layers * row * tokens
    sliding, full = _layer_groups(shape.layers, min(shape.layers, shape.sliding_layers))
    cached = min(tokens, shape.sliding_window + step_tokens)
    return row * (full * tokens + sliding * cached)


def _row_bytes(shape: ModelShape, devices: int, kv_bits: int) -> int:
    """Return the bytes of one token in one layer on one device."""
    if shape.encoder_only:
        return 0
    if shape.latent_dim is not None:
        # Multi-head latent attention: every device has the whole latent vector.
        return shape.latent_dim * kv_bits // 8
    # With fewer KV heads than devices, each device has a copy of one.
    heads = max(1, -(-shape.kv_heads // devices))
    return kv_bytes_per_token(1, heads, shape.head_dim, kv_bits)


def _layer_groups(layers: int, sliding: int) -> tuple[int, int]:
    """Return the layers with and without a window that take memory, padding included."""
    # vLLM allocates both kinds in groups of equal size and pads the last group.
    full = layers - sliding
    if not full:
        return sliding, 0
    least, most = sorted((full, sliding))
    group_layers = most if most < _MAX_PADDING_RATIO * least else least
    return -(-sliding // group_layers) * group_layers, -(-full // group_layers) * group_layers
