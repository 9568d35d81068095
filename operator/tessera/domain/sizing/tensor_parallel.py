"""Tensor parallelism: the numbers of devices over which a model can be sharded."""

from tessera.api.model_files import ModelShape
from tessera.api.text import counted

_MAX_DEVICES = 16


def can_shard(shape: ModelShape, devices: int) -> bool:
    """Return whether the model's heads can be sharded over so many devices."""
    # Every device needs as many attention heads, and as many KV heads or a copy of one of them.
    kv_heads = {shape.kv_heads, shape.full_kv_heads or shape.kv_heads}
    kv_divides = all(heads % devices == 0 or devices % heads == 0 for heads in kv_heads)
    return shape.attention_heads % devices == 0 and (kv_divides or shape.latent_dim is not None)


def sharding_problem(shape: ModelShape, devices: int) -> str | None:
    """Return why the model cannot be sharded, with the counts that work; None when it can."""
    if can_shard(shape, devices):
        return None
    valid_counts = [str(count) for count in range(1, _MAX_DEVICES + 1) if can_shard(shape, count)]
    return (
        f"{counted(shape.attention_heads, 'attention head')} and "
        f"{counted(shape.kv_heads, 'KV head')} cannot be sharded over {counted(devices, 'GPU')}; "
        f"use one of {', '.join(valid_counts)}"
    )
