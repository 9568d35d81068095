"""The least time that prompts of mixtures take in their experts, solved from one measured prompt.

By the kernels alone that prompt would take less than half as long. Why is not known, so the slower
of the two counts.
"""

from collections.abc import Sequence

from speed_rows import Row, read_engine
from tessera.domain.perf.table import PromptFloor, SpeedTable

# Of the GPU that read it.
FAMILY = "NVIDIA-H100"
# Tokens of each expert in that prompt: 2,048 tokens x 8 of 128 experts.
TOKENS_PER_EXPERT = 128
# The layers of that model have so many experts each.
EXPERTS = 128
_MODEL, _TOKENS = "Qwen/Qwen3-30B-A3B", 2048
_NANOS = 0.01


def fitted_rows(engine_rows: Sequence[Row]) -> list[Row]:
    """The prompt that the least time is solved from."""
    key = (_MODEL, None, "prefill", _TOKENS)
    return [row for row in engine_rows if (row.model, row.precision, row.phase, row.context) == key]


def held_out_errors(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> dict[Row, float]:
    """The relative error of that prompt by the kernels alone."""
    kernels_alone = with_floor(speed_table, 0)
    return {row: row.relative_error(kernels_alone) for row in fitted_rows(engine_rows)}


def prompt_floor(speed_table: SpeedTable) -> PromptFloor:
    """The least time with which that prompt takes as long as it did."""
    [row] = fitted_rows(read_engine())
    low, high = 0.0, 1e4
    while high - low > _NANOS:
        middle = (low + high) / 2
        predicted = row.predicted(with_floor(speed_table, middle))
        low, high = (middle, high) if predicted < row.seconds else (low, middle)
    return speed_table.experts.prompts.model_copy(update={"row_nanos": round(high, 1)})


def with_floor(speed_table: SpeedTable, row_nanos: float) -> SpeedTable:
    """The table with another least time."""
    prompts = speed_table.experts.prompts.model_copy(update={"row_nanos": row_nanos})
    experts = speed_table.experts.model_copy(update={"prompts": prompts})
    return speed_table.model_copy(update={"experts": experts})
