"""Memory of LoRA adapters.

vLLM allocates one slot of `--max-lora-rank` for each of `--max-loras` adapters, in every
projection of every layer, whichever projections the adapter changes.
"""

from collections.abc import Sequence

from tessera.api.model_files import Adapter, ModelShape
from tessera.domain.perf.footprint import LARGEST_VOCABULARY, feed_forward, hidden_size

# Values that `--max-lora-rank` accepts.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_BYTES_PER_WEIGHT = 2
_MIB = 2**20


def engine_rank(adapters: Sequence[Adapter]) -> int:
    """Return the least `--max-lora-rank` that loads all adapters; 0 without any."""
    max_rank = max((adapter.rank for adapter in adapters), default=0)
    return min((rank for rank in RANKS if rank >= max_rank), default=RANKS[-1]) if max_rank else 0


def slots_mib(shape: ModelShape, slots: int, rank: int) -> int:
    """Return the MiB of so many adapter slots on one device; an upper bound."""
    # Counted in full on each device of a tensor-parallel group, since one of the two matrices of a
    # slot is not sharded.
    if not slots:
        return 0
    hidden, queries = hidden_size(shape), shape.attention_heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    intermediate = feed_forward(shape, shape.parameters)
    # Inputs and outputs of q, k, v, o, gate, up and down.
    widths = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + intermediate)
    weights = rank * (shape.layers * widths + hidden + LARGEST_VOCABULARY)
    return -(-slots * weights * _BYTES_PER_WEIGHT // _MIB)
