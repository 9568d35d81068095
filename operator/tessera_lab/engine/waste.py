"""What is reserved and not used, as shares: padding, waiting slots, empty KV memory."""

from collections.abc import Sequence


def padding_waste(length: int, longest: int) -> float:
    """Share of a request's place in a batch that is filled up with padding (F10)."""
    return 1 - length / longest


def batch_padding_waste(lengths: Sequence[int]) -> float:
    """The same of a whole batch that is padded to its longest request (F10)."""
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def idle_slot_steps(length: int, longest: int) -> int:
    """Steps that a slot waits for the longest answer of its batch (F23)."""
    return longest - length


def slot_waste(used: int, allocated: int) -> float:
    """Share of a reserved KV slot that holds no token (F24)."""
    return 1 - used / allocated


def sequences_that_fit(kv_bytes: float, bytes_per_token: int, tokens: int) -> int:
    """Requests of so many tokens each that a KV cache holds at once, without rounding to blocks."""
    return int(kv_bytes // (bytes_per_token * tokens))
