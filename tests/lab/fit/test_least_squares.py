"""Least squares: known answers, and the shipped table against the rows that it was fitted on."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import calibrate
from int4_kernel import held_out_errors, int4_rows, with_int4
from shares import rms
from speed_errors import at_least, measured_errors, published_errors, table_errors
from speed_rows import ROWS, read, read_engine, split
from tessera.domain.perf.table import shipped_speed_table
from tessera_lab.fit.least_squares import least_squares, solve

rows_needed = pytest.mark.skipif(
    not ROWS.exists(), reason="the published measurements are not beside this checkout"
)


def test_a_system_is_solved_although_its_first_pivot_is_zero() -> None:
    assert solve([[0.0, 2.0], [4.0, 1.0]], [6.0, 7.0]) == pytest.approx([1.0, 3.0])


def test_a_system_without_a_single_solution_is_refused() -> None:
    with pytest.raises(ValueError, match="no single solution"):
        solve([[1.0, 2.0], [2.0, 4.0]], [1.0, 2.0])


@given(st.floats(0.1, 5.0), st.floats(0.1, 3.0))
def test_the_numbers_behind_exact_measurements_are_found(height: float, decay: float) -> None:
    seen = [(x / 4, height * math.exp(-decay * x / 4)) for x in range(12)]

    def off(at: Sequence[float]) -> list[float]:
        return [math.exp(at[0] - math.exp(at[1]) * x) / y - 1 for x, y in seen]

    solution = least_squares(off, [0.0, 0.0])
    assert [math.exp(value) for value in solution] == pytest.approx([height, decay], rel=1e-4)


def test_the_shipped_table_says_how_it_was_made_and_is_as_accurate_as_stated() -> None:
    shipped = shipped_speed_table()
    assert shipped.fitted_rows == 3 * shipped.held_out_rows
    assert shipped.fit_errors.decode_mape <= 5
    assert shipped.fit_errors.prefill_mape <= 10
    shares = [
        share
        for family in shipped.families
        for layers in family.arithmetic.values()
        for share in (family.cache, family.attention, layers.weights, layers.compute)
    ]
    assert all(0 < share < 1 for share in shares)


@rows_needed
def test_the_shipped_table_has_the_errors_that_it_states() -> None:
    shipped = shipped_speed_table()
    fitted, held_out = split(read(ROWS), shipped.seed)
    assert (len(fitted), len(held_out)) == (shipped.fitted_rows, shipped.held_out_rows)
    for phase, stated in (
        ("decode", shipped.fit_errors.decode_mape),
        ("prefill", shipped.fit_errors.prefill_mape),
    ):
        assert calibrate.mape(shipped, held_out, phase) == pytest.approx(stated, abs=0.01)
    assert calibrate.errors() == {
        "decode_mape": shipped.fit_errors.decode_mape,
        "prefill_mape": shipped.fit_errors.prefill_mape,
    }


@rows_needed
def test_no_published_step_is_off_by_more_than_a_seventh() -> None:
    assert max(abs(row.relative_error(shipped_speed_table())) for row in read(ROWS)) < 1 / 7


def test_the_shares_of_the_4_bit_kernel_are_those_that_fit_its_steps() -> None:
    shipped = shipped_speed_table()
    assert with_int4(shipped, read_engine()).int4 == shipped.int4
    assert [kernel.fitted_rows for kernel in shipped.int4] == [14]


def test_no_step_in_4_bits_is_judged_by_shares_that_were_fitted_on_it() -> None:
    shipped, rows = shipped_speed_table(), int4_rows(read_engine())
    errors = held_out_errors(shipped, rows)
    assert set(errors) == set(rows)
    # Without the step itself in the fit, all errors together are larger.
    fitted = [row.relative_error(shipped) for row in rows]
    assert rms(errors.values()) > 1.5 * rms(fitted)


def test_the_errors_in_the_table_are_those_of_the_engine_s_steps() -> None:
    shipped, rows = shipped_speed_table(), read_engine()
    by_table = table_errors(shipped, rows)
    of_roofline = [error for error in shipped.errors if error.source == "Roofline"]
    elsewhere = published_errors(shipped, by_table, of_roofline)
    stated = [error for error in shipped.errors if error.source != "Roofline"]
    assert stated == [*by_table, *elsewhere, *measured_errors(shipped, rows)]
    assert of_roofline == [at_least(error, elsewhere) for error in of_roofline]


@pytest.mark.full
@pytest.mark.long
@rows_needed
def test_fitting_again_gives_the_shipped_table() -> None:
    rows = read(ROWS)
    assert calibrate.calibrate(rows, calibrate.fit_without_families(rows)) == shipped_speed_table()
