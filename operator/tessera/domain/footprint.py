"""What a model takes in memory: its weights and, for every token, its KV cache."""

from tessera.api.inference_service import ModelShape


def weight_bytes(parameters: int, bits: int) -> int:
    """Parameters x bits / 8 (F06, first part)."""
    return parameters * bits // 8


def bits_of(shape: ModelShape, precision: str | None) -> int:
    """Bits of one weight in memory; `precision` None means as in the files."""
    return 8 if precision == "fp8" else shape.bits_per_weight


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, bits: int = 16) -> int:
    """2 x layers x KV heads x head dimension x bits / 8: keys and values of one token (F11)."""
    return 2 * layers * kv_heads * head_dim * bits // 8


def resident_bytes(shape: ModelShape, precision: str | None) -> int:
    """All weights as they lie in memory, over all devices of a replica."""
    return weight_bytes(shape.parameters, bits_of(shape, precision))


def active_parameters(shape: ModelShape) -> int:
    """Weights that one token uses: all of them, but for a mixture of experts."""
    return shape.active_parameters or shape.parameters


def read_bytes(shape: ModelShape, precision: str | None) -> int:
    """Weights that a step of a single token reads, over all devices."""
    return weight_bytes(active_parameters(shape), bits_of(shape, precision))


def cache_bytes_per_token(shape: ModelShape, devices: int) -> int:
    """Keys and values of one token on each of `devices`: beyond one a rank, KV heads are copied."""
    heads = max(1, -(-shape.kv_heads // devices))
    return kv_bytes_per_token(shape.layers, heads, shape.head_dim)
