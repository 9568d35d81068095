"""Among how many devices a model can be divided."""

from tessera.api.inference_service import ModelShape

_MAX_DEVICES = 16


def can_shard(shape: ModelShape, devices: int) -> bool:
    """Whether every device gets equally many attention heads, and KV heads or copies of one."""
    heads = shape.kv_heads
    kv_divides = heads % devices == 0 or devices % heads == 0 or shape.latent_dim is not None
    return shape.attention_heads % devices == 0 and kv_divides


def sharding_problem(shape: ModelShape, devices: int) -> str | None:
    """Why not, and what would do."""
    if can_shard(shape, devices):
        return None
    valid_counts = [str(count) for count in range(1, _MAX_DEVICES + 1) if can_shard(shape, count)]
    return (
        f"{shape.attention_heads} attention and {shape.kv_heads} KV heads cannot be divided among "
        f"{devices} GPUs; these can do it: {', '.join(valid_counts)}"
    )
