"""The experts of a mixture: their part of a step, and the kernel that computes them."""

from dataclasses import dataclass, replace
from typing import Literal

from tessera.api.model_files import ModelShape
from tessera.domain.perf import footprint

# What computes experts in vLLM 0.30 to 0.33. `Fp8` is for weights that are loaded from 16-bit files
# with a scale for each expert: Triton on every GPU, since what is faster or slower elsewhere wants
# blocks or activations of a fixed scale. `Fp8Blocks` is for files with scales for blocks.
ExpertKernel = Literal["Bf16", "Fp8", "Fp8Blocks", "Int4", "Mxfp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsTime:
    """Coefficients of the seconds that a step spends in the experts of all layers."""

    read: float
    """Reading the weights of every expert."""
    unread_share: float
    """Share of the experts that a single token does not use; more tokens use more experts."""
    token: float
    """Computing one token."""
    unoverlapped: float = 0.0
    """Share of the shorter of reading and computing that the longer does not hide."""
    prompt_token: float = 0.0
    """Least time of one of the first `prompt_tokens` that a step reads of prompts."""
    prompt_tokens: float = 0.0
    """Tokens of prompts from which on more take no longer than by `token`."""

    def seconds(self, tokens: float, prefill_tokens: float) -> float:
        """Return the seconds of a step of so many tokens, of which some are of prompts."""
        # An expert stays unread only if every token of the step leaves it out.
        unread: float = self.unread_share**tokens
        reading = self.read * (1 - unread)
        computing = self.token * tokens
        if prefill_tokens:
            least = self.prompt_token * min(prefill_tokens, self.prompt_tokens)
            computing = max(computing, least)
        if reading < computing:
            reading, computing = computing, reading
        return reading + self.unoverlapped * computing

    def scaled(self, reading: float, computing: float) -> "ExpertsTime":
        """Return a copy whose reading and computing take so many times as long."""
        return replace(
            self,
            read=self.read * reading,
            token=self.token * computing,
            prompt_token=self.prompt_token * computing,
        )


def expert_kernel(shape: ModelShape, precision: str | None, *, fp8: bool) -> ExpertKernel:
    """Return what computes the experts; `fp8` says whether the layers compute in 8 bits."""
    if fp8:
        return "Fp8" if precision == "fp8" and shape.quantization is None else "Fp8Blocks"
    if footprint.weight_bits(shape, precision) > 4:
        return "Bf16"
    return "Mxfp4" if (precision or shape.quantization) == "mxfp4" else "Int4"
