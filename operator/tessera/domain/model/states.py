"""What layers without attention keep of a request, whatever its length."""

from dataclasses import dataclass

from tessera.domain.model.config_keys import Keys
from tessera.domain.model.families import ModelFamily

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state of a layer, as wide as its values."""

    heads: int
    width: int
    """Of the values of all heads."""
    projected: int
    """Width of what a token is projected to."""
    convolved: int
    """Width of what is convolved with the tokens before."""
    kernel: int
    """Tokens of a convolution."""
    values: int
    """Numbers that a request keeps beside those of the convolution."""
    value_bytes: int

    @property
    def bytes(self) -> int:
        """Return the bytes of a request, as vLLM 0.32 keeps them."""
        return 2 * self.convolved * (self.kernel - 1) + self.values * self.value_bytes


def state_of(keys: Keys, family: ModelFamily) -> State:
    """Return the state; UnsupportedConfigError where a number of it is missing."""
    if family.recurrent == "mamba2":
        heads, head_dim, size = (
            keys["mamba_num_heads"],
            keys["mamba_head_dim"],
            keys["ssm_state_size"],
        )
        width = heads * head_dim
        convolved = width + 2 * (keys.get("n_groups", "mamba_n_groups") or 1) * size
        return State(
            heads=heads,
            width=width,
            projected=width + convolved + heads,
            convolved=convolved,
            kernel=keys.get("conv_kernel", "mamba_d_conv") or 4,
            values=width * size,
            value_bytes=_bytes(keys, "mamba_ssm_cache_dtype", "float32"),
        )
    key_heads, heads = keys["linear_num_key_heads"], keys["linear_num_value_heads"]
    width = heads * keys["linear_value_head_dim"]
    convolved = 2 * key_heads * keys["linear_key_head_dim"] + width
    return State(
        heads=heads,
        width=width,
        projected=convolved + width + 2 * heads,
        convolved=convolved,
        kernel=keys["linear_conv_kernel_dim"],
        values=width * keys["linear_key_head_dim"],
        value_bytes=_bytes(keys, "mamba_ssm_dtype", "bfloat16"),
    )


def _bytes(keys: Keys, key: str, default: str) -> int:
    return _BYTES.get(str(keys.values.get(key) or default), _BYTES["float32"])
