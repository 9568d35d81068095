"""Published measurements: every row is predicted, from a stated source under stated conditions."""

from dataclasses import replace

import pytest

from published_steps import (
    PublishedRow,
    published_rows,
    published_sources,
    root_mean_square,
    table,
)

ROWS = published_rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.source}-{row.model}-{row.input}")
def test_a_published_row_of_a_stated_source_is_predicted(row: PublishedRow) -> None:
    assert row.source in published_sources()
    assert 0.4 <= 1 + row.time_error() <= 2.5


def test_each_family_that_the_fit_lacks_has_six_rows() -> None:
    for word in ("Int4", "Experts", "Windows"):
        assert sum(word.lower() in row.family.lower() for row in ROWS) >= 6


def test_4_bits_on_another_hopper_gpu_and_model_size_are_within_a_tenth() -> None:
    rows = [row for row in ROWS if row.family == "Int4" and row.product == "NVIDIA-H200"]
    assert {row.step().source for row in rows} == {"Table"}
    assert root_mean_square(rows) <= 0.1


def test_4_bits_without_a_fitted_kernel_are_within_the_stated_error() -> None:
    rows = [row for row in ROWS if row.family == "Int4" and row.product != "NVIDIA-H200"]
    assert {row.step().source for row in rows} == {"Roofline"}
    assert all(root_mean_square(rows) <= row.stated_error() for row in rows)


def test_experts_in_4_bits_with_windows_are_within_a_tenth_of_published_gaps() -> None:
    rows = [row for row in ROWS if row.model == "openai/gpt-oss-120b"]
    assert root_mean_square(rows) <= 0.1


def test_a_faster_measurement_is_an_error_to_the_slow_side() -> None:
    [row, *_] = [row for row in ROWS if row.metric == "throughput"]
    assert replace(row, measured=2 * row.measured).time_error() > row.time_error()
    [gap, *_] = [row for row in ROWS if row.metric == "itl"]
    assert replace(gap, measured=2 * gap.measured).time_error() < gap.time_error()


def test_prompts_of_others_lengthen_the_mean_gap_but_not_the_gap_between_them() -> None:
    [gap, *_] = [row for row in ROWS if row.metric == "itl" and row.concurrency > 1]
    assert replace(gap, metric="tpot").predicted() > gap.predicted()
    alone = replace(gap, concurrency=1)
    assert replace(alone, metric="tpot").predicted() == pytest.approx(alone.predicted())


def test_the_table_has_a_line_for_each_row() -> None:
    assert sum(line.startswith("| ") for line in table().splitlines()) == len(ROWS) + 2
