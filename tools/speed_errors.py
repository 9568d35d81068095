"""Errors of predicted step times, by kind of model and source.

Compared are the steps of a real engine (`docs/figures/steps-h100.json`), and for dense models of
GPUs without measurements the published rows of each family, predicted from the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import expert_prompts
import int4_kernel
from published_steps import published_rows
from shares import rms
from speed_rows import Row, read_engine
from tessera.api.variant_status import SpeedSource
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.perf.table import KindError, ModelKind, SpeedTable, model_kinds

_DIGITS = 3
_FIGURES = {"Dense": "dense", "Windows": "windows", "Experts": "mixtures", "Int4": "int4"}


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
    for fit in (int4_kernel, expert_prompts):
        errors |= fit.held_out_errors(speed_table, engine_rows)
    return errors


def table_errors(speed_table: SpeedTable, engine_rows: Sequence[Row]) -> list[KindError]:
    """Errors on the rows of the engine, of the kinds that the table has shares for."""
    errors = engine_errors(speed_table, engine_rows)
    return [
        _kind_error(kind, "Table", rows, errors.__getitem__).model_copy(
            update={"family": rows[0].family}
        )
        for kind, rows in rows_by_kind(engine_rows).items()
        if all(row.step(speed_table).source == "Table" for row in rows)
    ]


def published_errors(
    speed_table: SpeedTable, of_table: Sequence[KindError], of_roofline: Sequence[KindError]
) -> list[KindError]:
    """Errors of the table on GPUs of families that no engine was measured on.

    They are those of published figures of such GPUs, which time decoding; of prompts they are those
    of dense models by the roofline. None is smaller than on the engine's GPU.
    """
    errors: list[KindError] = []
    for measured in of_table:
        rows = [
            row
            for row in published_rows()
            if not row.product.startswith(measured.family)
            and row.step(speed_table).source == "Table"
            and model_kinds(models()[row.model], row.precision) == (measured.kind,)
        ]
        if rows:
            decode = rms(row.time_error(speed_table) for row in rows)
            seen = KindError(
                kind=measured.kind,
                source="Table",
                decode=round(decode, _DIGITS),
                prompts=of_roofline[0].prompts,
                rows=len(rows),
            )
            errors.append(at_least(seen, [measured]))
    return errors


def rms_figures(speed_table: SpeedTable) -> dict[str, Any]:
    """Errors in percent on the rows of the engine, by kind, and on those that were fitted alone."""
    engine_rows = read_engine()
    fitted: dict[ModelKind, Sequence[Row]] = {
        "Int4": int4_kernel.int4_rows(engine_rows),
        "Experts": expert_prompts.fitted_rows(engine_rows),
    }
    figures: dict[str, Any] = {}
    for error in table_errors(speed_table, engine_rows):
        name = _FIGURES[error.kind]
        figures[f"decode_rms_{name}"] = round(100 * error.decode, 1)
        figures[f"prompts_rms_{name}"] = round(100 * error.prompts, 1)
        figures[f"held_out_rows_{name}"] = error.rows
        rows = fitted.get(error.kind, ())
        figures[f"fitted_rows_{name}"] = len(rows)
        for phase, of_phase in (("decode", "decode"), ("prefill", "prompts")):
            errors = [row.relative_error(speed_table) for row in rows if row.phase == phase]
            if errors:
                figures[f"{of_phase}_rms_{name}_fitted"] = round(100 * rms(errors), 1)
    return figures


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
    """Errors on GPUs that were not fitted; `by_left_out` has the tables without each family.

    No kind has less than dense models: their rows are of all families, the others of one alone.
    """

    def error(row: Row) -> float:
        return row.relative_error(by_left_out[row.family])

    dense = _kind_error("Dense", "Roofline", rows, error)
    others = [
        _kind_error(kind, "Roofline", kind_rows, error)
        for kind, kind_rows in rows_by_kind(engine_rows).items()
        if kind != "Dense"
    ]
    return [dense, *(at_least(other, [dense]) for other in others)]


def at_least(error: KindError, others: Sequence[KindError]) -> KindError:
    """The error, as large as those of others of its kind and of dense models."""
    compared = [error, *(other for other in others if other.kind in (error.kind, "Dense"))]
    greatest = {
        "decode": max(each.decode for each in compared),
        "prompts": max(each.prompts for each in compared),
    }
    return error.model_copy(update=greatest)


def _decode_ratios(errors: Mapping[Row, float]) -> dict[str, float]:
    """Measured over predicted seconds of all decoding steps, by model, precision and GPU."""
    ratios: dict[str, float] = {}
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
