"""Shares of Machete, a kernel of 4-bit weights, fitted to the steps of a real engine.

All steps of one 4-bit model are fitted, since there is no other. Its error comes from fits that
leave out one context at a time, so no step is predicted by shares that were fitted on it.
"""

import math
from collections.abc import Iterable, Sequence

from speed_rows import Row
from tessera.domain.perf.table import ArithmeticShares, Int4Kernel, SpeedTable
from tessera_lab.fit.least_squares import least_squares

_CAPABILITY = "9.0"
_GUESS = {"weights": 0.6, "compute": 0.6, "unhidden": 0.5}
# As in `calibrate`.
_PRIOR = 0.02
_DIGITS = 3


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
    start = [math.log(guess) for guess in _GUESS.values()]

    def table(logarithms: Sequence[float]) -> SpeedTable:
        shares = {name: math.exp(value) for name, value in zip(_GUESS, logarithms, strict=True)}
        return _with_shares(speed_table, ArithmeticShares(**shares), len(rows))

    def residuals(at: Sequence[float]) -> list[float]:
        fitted = table(at)
        pulls = [_PRIOR * (value - guess) for value, guess in zip(at, start, strict=True)]
        return [row.relative_error(fitted) for row in rows] + pulls

    fitted = least_squares(residuals, start)
    shares = {
        name: float(f"{math.exp(value):.{_DIGITS}g}")
        for name, value in zip(_GUESS, fitted, strict=True)
    }
    return _with_shares(speed_table, ArithmeticShares(**shares), len(rows))


def _with_shares(speed_table: SpeedTable, shares: ArithmeticShares, rows: int) -> SpeedTable:
    kernel = Int4Kernel(name="Machete", capability=_CAPABILITY, fitted_rows=rows, shares=shares)
    return speed_table.model_copy(update={"int4": (kernel,)})
