"""Errors of predicted step times, by kind of model and source.

Compared are the steps of a real engine (`docs/figures/steps-h100.json`), and for dense models of
GPUs without measurements the published rows of each family, predicted from the others.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from int4_kernel import held_out_errors
from speed_rows import Row
from tessera.api.variant_status import SpeedSource
from tessera.domain.perf.table import KindError, ModelKind, SpeedTable, model_kinds

_DIGITS = 3


def rms(errors: Iterable[float]) -> float:
    """The root mean square."""
    squares = [error * error for error in errors]
    return math.sqrt(sum(squares) / len(squares))


def rows_by_kind(rows: Iterable[Row]) -> dict[ModelKind, list[Row]]:
    """The rows of models that are of one kind alone."""
    by_kind: dict[ModelKind, list[Row]] = {}
    for row in rows:
        [kind] = model_kinds(row.shape, row.precision)
        by_kind.setdefault(kind, []).append(row)
    return by_kind


def engine_errors(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> dict[Row, float]:
    """The relative error of each row of the engine, by shares that were not fitted on it."""
    errors = {row: row.relative_error(speed_table) for row in engine_rows}
    return errors | held_out_errors(speed_table, engine_rows)


def table_errors(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> list[KindError]:
    """Errors on the rows of the engine, of the kinds that the table has shares for."""
    errors = engine_errors(speed_table, engine_rows)
    return [
        _kind_error(kind, "Table", rows, errors.__getitem__)
        for kind, rows in rows_by_kind(engine_rows).items()
        if all(row.step(speed_table).source == "Table" for row in rows)
    ]


def measured_errors(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> list[KindError]:
    """Errors that are left after one ratio for each model, that of its mean ITL."""
    errors = engine_errors(speed_table, engine_rows)
    ratios = _decode_ratios(errors)

    def error(row: Row) -> float:
        return (1 + errors[row]) * ratios[row.group] - 1

    return [
        _kind_error(kind, "Measured", rows, error)
        for kind, rows in rows_by_kind(engine_rows).items()
    ]


def roofline_errors(
    by_left_out: Mapping[str, SpeedTable], rows: Sequence[Row], engine_rows: Sequence[Row]
) -> list[KindError]:
    """Errors on GPUs that were not fitted; `by_left_out` has the tables without each family."""

    def error(row: Row) -> float:
        return row.relative_error(by_left_out[row.family])

    dense = _kind_error("Dense", "Roofline", rows, error)
    kinds = rows_by_kind(engine_rows)
    return [
        dense,
        *(_kind_error(kind, "Roofline", kinds[kind], error) for kind in kinds if kind != "Dense"),
    ]


def _decode_ratios(errors: Mapping[Row, float]) -> dict[str, float]:
    """Measured over predicted seconds of all decoding steps, by model, precision and GPU."""
    ratios = {}
    for group in dict.fromkeys(row.group for row in errors):
        decoding = [row for row in errors if row.group == group and row.phase == "decode"]
        predicted = sum((1 + errors[row]) * row.seconds for row in decoding)
        ratios[group] = sum(row.seconds for row in decoding) / predicted
    return ratios


def _kind_error(
    kind: ModelKind, source: SpeedSource, rows: Sequence[Row], error: Callable[[Row], float]
) -> KindError:
    def of_phase(phase: str) -> float:
        return round(rms(error(row) for row in rows if row.phase == phase), _DIGITS)

    return KindError(
        kind=kind,
        source=source,
        decode=of_phase("decode"),
        prompts=of_phase("prefill"),
        rows=len(rows),
    )
