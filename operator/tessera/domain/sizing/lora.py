"""What LoRA adapters take besides their model.

The engine keeps one slot for each adapter that may be in a step, with the largest rank, for every
projection of every layer, whatever the adapter itself changes.
"""

from collections.abc import Sequence

from tessera.api.inference_service import ModelShape
from tessera.api.model_files import Adapter
from tessera.domain.perf.footprint import hidden_size

# What `--max-lora-rank` takes.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_BYTES_PER_WEIGHT = 2
_MIB = 2**20
# Rows of the output layer, as in the largest vocabularies.
_VOCABULARY = 262_144


def engine_rank(adapters: Sequence[Adapter]) -> int:
    """The least rank of the engine that takes all adapters; 0 without any."""
    max_rank = max((adapter.rank for adapter in adapters), default=0)
    return min((rank for rank in RANKS if rank >= max_rank), default=RANKS[-1]) if max_rank else 0


def slots_mib(shape: ModelShape, slots: int, rank: int) -> int:
    """Memory of so many slots on one device, in MiB.

    Counted in full on each device of a tensor-parallel group: one half of a slot is on every device
    anyway. Widths that a shape does not have follow from its number of weights, rounded up.
    """
    if not slots:
        return 0
    hidden, queries = hidden_size(shape), shape.attention_heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    attention = 2 * hidden * (queries + keys)
    intermediate = max(0, -(-shape.parameters // shape.layers) - attention) // (3 * hidden)
    # In and out of q, k, v, o, gate, up and down.
    widths = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + intermediate)
    weights = rank * (shape.layers * widths + hidden + _VOCABULARY)
    return -(-slots * weights * _BYTES_PER_WEIGHT // _MIB)
