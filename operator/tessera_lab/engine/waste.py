"""What padding and reserving waste: shares of tokens that hold nothing."""

from collections.abc import Sequence
from typing import NamedTuple


class PaddingWaste(NamedTuple):
    """Shares of padding in a batch that is padded to its longest request."""

    requests: tuple[float, ...]
    """Of each request, in the order of the lengths."""
    batch: float


def padding_waste(lengths: Sequence[int]) -> PaddingWaste:
    """Return the padding of a batch of at least one request."""
    longest = max(lengths)
    return PaddingWaste(
        requests=tuple(slot_waste(length, longest) for length in lengths),
        batch=slot_waste(sum(lengths), len(lengths) * longest),
    )


def slot_waste(used: float, allocated: float) -> float:
    """Return the share of the allocated tokens that hold nothing."""
    return 1 - used / allocated


def cached_token_steps(prompt: int, output: int) -> int:
    """Return the cached tokens of a request, summed over the steps of its output.

    The newest token of a step is not cached yet.
    """
    return output * prompt + output * (output - 1) // 2


def block_token_steps(prompt: int, output: int, block: int) -> int:
    """Return the tokens of the blocks that hold `cached_token_steps`, summed in the same way."""
    return _block_tokens(prompt + output - 1, block) - _block_tokens(prompt - 1, block)


def _block_tokens(tokens: int, block: int) -> int:
    """Return the tokens in the blocks of 1, 2, and so on up to so many tokens, added up."""
    full, rest = divmod(tokens, block)
    return block * (block * full * (full + 1) // 2 + rest * (full + 1))
