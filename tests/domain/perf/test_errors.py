"""The error that each prediction carries: by kind of model and by source."""

import json

import pytest

from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.perf.sources import SpeedMeasurement, measurement_key, step_time
from tessera.domain.perf.step import PredictionError, StepTime
from tessera.domain.perf.table import (
    MEASURED_VERSION,
    ModelKind,
    SpeedTable,
    model_kinds,
    prediction_error,
    shipped_speed_table,
)
from tests.builders import A100, H100
from tests.domain.perf.test_step import B8, FIGURES, H200, INT4, MIXTURE, WINDOWS, gpus


@pytest.mark.parametrize(
    ("model", "precision", "kinds"),
    [
        (B8, None, ("Dense",)),
        (B8, "fp8", ("Dense",)),
        (B8, "awq-int4", ("Int4",)),
        (INT4, None, ("Int4",)),
        (WINDOWS, None, ("Windows",)),
        (MIXTURE, None, ("Experts",)),
        (MIXTURE, "awq-int4", ("Experts", "Int4")),
        ("openai/gpt-oss-20b", None, ("Windows", "Experts", "Int4")),
        ("deepseek-ai/DeepSeek-V3", None, ("Experts", "Other")),
        ("BAAI/bge-m3", None, ("Other",)),
    ],
)
def test_a_model_is_of_each_kind_that_its_shape_shows(
    model: str, precision: str | None, kinds: tuple[ModelKind, ...]
) -> None:
    assert model_kinds(models()[model], precision) == kinds


@pytest.mark.parametrize("model", [B8, WINDOWS, MIXTURE, INT4, "BAAI/bge-m3"])
@pytest.mark.parametrize("product", [A100, H100])
def test_every_prediction_says_its_error_which_is_never_zero(model: str, product: str) -> None:
    error = step_time(models()[model], None, gpus(product)).error
    assert error is not None
    assert error.decode > 0.01
    assert error.prompts > 0.05


def test_the_version_of_the_engine_that_was_measured_is_that_of_the_figures() -> None:
    assert json.loads(FIGURES.read_text(encoding="utf-8"))["vllm"] == MEASURED_VERSION


def test_a_gpu_without_measurements_has_the_larger_error() -> None:
    table = shipped_speed_table()
    for model in (B8, WINDOWS, MIXTURE):
        shape = models()[model]
        measured, guessed = (
            prediction_error(table, shape, None, source, H100) for source in ("Table", "Roofline")
        )
        assert guessed.decode > measured.decode
        assert (
            guessed.decode >= prediction_error(table, models()[B8], None, "Roofline", H100).decode
        )


@pytest.mark.parametrize("model", [B8, WINDOWS, MIXTURE, INT4])
def test_an_error_that_was_measured_on_one_gpu_is_not_stated_of_others(model: str) -> None:
    measured, other = (step_time(models()[model], None, gpus(product)) for product in (H100, H200))
    assert measured.source == other.source == "Table"
    assert measured.error is not None
    assert other.error is not None
    assert other.error.decode > 1.4 * measured.error.decode


def with_errors(speed_table: SpeedTable, *kinds: ModelKind) -> SpeedTable:
    errors = tuple(error for error in speed_table.errors if error.kind in kinds)
    return speed_table.model_copy(update={"errors": errors})


def test_a_kind_without_measurements_has_the_error_of_the_roofline_and_no_rows() -> None:
    speed_table = with_errors(shipped_speed_table(), "Dense")
    dense = prediction_error(speed_table, models()[B8], None, "Roofline", H100)
    other = prediction_error(speed_table, models()[WINDOWS], None, "Table", H100)
    assert other == PredictionError(decode=dense.decode, prompts=dense.prompts, rows=0)


def test_a_model_of_several_kinds_has_the_largest_error_of_them_and_no_rows() -> None:
    speed_table, shape = shipped_speed_table(), models()["openai/gpt-oss-20b"]
    error = prediction_error(speed_table, shape, None, "Roofline", H100)
    parts = [each for each in speed_table.errors if each.source == "Roofline"]
    assert error.rows == 0
    assert error.decode == max(
        each.decode for each in parts if each.kind in model_kinds(shape, None)
    )


def test_a_measured_ratio_replaces_the_error_of_the_prediction() -> None:
    shape, hardware = models()[B8], gpus(H100)
    measured = {measurement_key(shape, None, hardware): SpeedMeasurement(ratio=1.25, requests=100)}
    step = step_time(shape, None, hardware, measured=measured)
    assert step.error == prediction_error(shipped_speed_table(), shape, None, "Measured", H100)
    assert step.error != step_time(shape, None, hardware).error


@pytest.mark.parametrize(("ratio", "counted"), [(40.0, 5.0), (1e-3, 0.2)])
def test_a_ratio_that_no_engine_has_counts_to_the_bound_with_the_error_of_the_roofline(
    ratio: float, counted: float
) -> None:
    shape, hardware = models()[B8], gpus(H100)
    predicted = step_time(shape, None, hardware)
    measured = {measurement_key(shape, None, hardware): SpeedMeasurement(ratio=ratio, requests=100)}
    step = step_time(shape, None, hardware, measured=measured)
    assert step.weights == pytest.approx(counted * predicted.weights)
    assert step.error == prediction_error(shipped_speed_table(), shape, None, "Roofline", H100)


def test_a_step_time_that_was_given_has_no_error() -> None:
    assert StepTime(weights=1.0, kv_token=0.0, token=0.0).scaled(2.0, "Measured").error is None
