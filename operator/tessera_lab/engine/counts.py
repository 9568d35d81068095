"""What an engine did, as plain sums."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineCounters:
    """What an engine did so far."""

    steps: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    queried_tokens: int = 0
    """Looked for in the prefix cache, by requests admitted for the first time."""
    hit_tokens: int = 0
    read_kv_tokens: int = 0
    """Cached tokens, summed over the steps that read them."""
