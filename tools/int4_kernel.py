"""Shares of Machete, a kernel of 4-bit weights, fitted to the steps of a real engine.

All steps of one 4-bit model are fitted, since there is no other. Its error comes from fits that
leave out one context at a time, so no step is predicted by shares that were fitted on it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from shares import fit_shares
from speed_rows import Row
from tessera.domain.perf.table import ArithmeticShares, Int4Kernel, SpeedTable

_CAPABILITY = "9.0"
_GUESS = {"weights": 0.6, "compute": 0.6, "unhidden": 0.5}


def with_int4(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> SpeedTable:
    """The table with the shares that fit the 4-bit steps of an engine best."""
    return _fit(speed_table, int4_rows(engine_rows))


def int4_rows(engine_rows: Iterable[Row]) -> list[Row]:
    """The steps of dense models in 4 bits."""
    return [row for row in engine_rows if row.shape.bits_per_weight == 4]


def held_out_errors(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> dict[Row, float]:
    """The relative error of each 4-bit step, by shares fitted on the steps of other contexts."""
    rows = int4_rows(engine_rows)
    errors: dict[Row, float] = {}
    for left_out in dict.fromkeys(_context(row) for row in rows):
        fitted = _fit(speed_table, [row for row in rows if _context(row) != left_out])
        errors |= {row: row.relative_error(fitted) for row in rows if _context(row) == left_out}
    return errors


def _context(row: Row) -> tuple[str, int]:
    """Prompts of one length, or decoding with about that many tokens of each sequence."""
    return row.phase, round(math.log2(row.context))


def _fit(speed_table: SpeedTable, rows: Sequence[Row]) -> SpeedTable:
    def errors_of(shares: Mapping[str, float]) -> list[float]:
        tried = _with_shares(speed_table, ArithmeticShares(**shares), len(rows))
        return [row.relative_error(tried) for row in rows]

    shares = fit_shares(_GUESS, errors_of, digits=3)
    return _with_shares(speed_table, ArithmeticShares(**shares), len(rows))


def _with_shares(speed_table: SpeedTable, shares: ArithmeticShares, rows: int) -> SpeedTable:
    kernel = Int4Kernel(name="Machete", capability=_CAPABILITY, fitted_rows=rows, shares=shares)
    return speed_table.model_copy(update={"int4": (kernel,)})
