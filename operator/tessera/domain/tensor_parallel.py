"""Among how many devices a model can be divided."""

from tessera.api.inference_service import ModelShape

_MOST = 16


def divides(shape: ModelShape, devices: int) -> bool:
    """Whether every device gets equally many attention heads, and KV heads or copies of one."""
    heads = shape.kv_heads
    whole = heads % devices == 0 or devices % heads == 0 or shape.latent_dim is not None
    return shape.attention_heads % devices == 0 and whole


def undivided(shape: ModelShape, devices: int) -> str | None:
    """Why not, and what would do."""
    if divides(shape, devices):
        return None
    good = [str(count) for count in range(1, _MOST + 1) if divides(shape, count)]
    return (
        f"{shape.attention_heads} attention and {shape.kv_heads} KV heads cannot be divided among "
        f"{devices} GPUs; these can do it: {', '.join(good)}"
    )
