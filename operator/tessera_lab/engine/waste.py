"""Shares of reserved compute and memory that stay unused: padding, idle slots, empty KV memory."""

from collections.abc import Sequence


def padding_waste(length: int, longest: int) -> float:
    """Return the share of a request's slot in a batch that is padding."""
    return 1 - length / longest


def batch_padding_waste(lengths: Sequence[int]) -> float:
    """Return the share of padding in a batch that is padded to its longest request."""
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def idle_slot_steps(length: int, longest: int) -> int:
    """Return the steps that a slot waits for the longest output of its batch."""
    return longest - length


def slot_waste(used: int, allocated: int) -> float:
    """Return the share of an allocated KV slot that holds no token."""
    return 1 - used / allocated


def sequences_that_fit(kv_bytes: float, bytes_per_token: int, tokens: int) -> int:
    """Return how many requests of `tokens` each a KV cache holds, without rounding to blocks."""
    return int(kv_bytes // (bytes_per_token * tokens))
