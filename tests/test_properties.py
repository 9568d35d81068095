import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.properties import applies

# Of 10 cases, whatever others have.
FIVE, ALL = (count * 100 // settings().max_examples for count in (5, 10))
TEN = settings(max_examples=10, suppress_health_check=list(HealthCheck), database=None)


def test_a_property_that_applies_to_too_few_random_cases_fails() -> None:
    @applies(FIVE)
    @TEN
    @given(st.integers(0, 1_000))
    def seldom(number: int) -> None:
        assume(number in (0, 1))

    with pytest.raises(AssertionError, match="random cases, 5 are wanted"):
        seldom()


def test_a_property_that_applies_to_enough_of_them_passes() -> None:
    @applies(ALL)
    @TEN
    @given(st.integers(0, 1_000))
    def often(number: int) -> None:
        assume(number > 100)

    often()
