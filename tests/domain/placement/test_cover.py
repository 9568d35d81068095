"""The cover of least cost, compared with all counts that there are."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.placement.cover import CoverOption, Need, least_cover, total_of

options_of = st.lists(
    st.builds(
        CoverOption,
        cost=st.integers(0, 40),
        capacity=st.integers(1, 25),
        is_firm=st.booleans(),
        most=st.integers(0, 4),
    ),
    max_size=4,
)
needs = st.builds(
    Need,
    capacity=st.integers(0, 80),
    pods=st.integers(0, 6),
    firm_pods=st.integers(0, 4),
    most_pods=st.none() | st.integers(0, 8),
)


def all_counts(options: Sequence[CoverOption], need: Need) -> list[tuple[int, ...]]:
    counts = itertools.product(*(range(option.most + 1) for option in options))
    return [each for each in counts if need.most_pods is None or sum(each) <= need.most_pods]


@given(options_of, needs)
def test_no_counts_that_have_as_much_cost_less(options: Sequence[CoverOption], need: Need) -> None:
    chosen = least_cover(options, need)
    have = total_of(options, chosen)

    def cost(counts: Sequence[int]) -> int:
        return sum(option.cost * count for option, count in zip(options, counts, strict=True))

    assert chosen in all_counts(options, need)
    for counts in all_counts(options, need):
        other = total_of(options, counts)
        if (
            other.capacity >= min(need.capacity, have.capacity)
            and other.pods >= min(need.pods, have.pods)
            and other.firm_pods >= min(need.firm_pods, have.firm_pods)
        ):
            assert cost(chosen) <= cost(counts)


@given(options_of, needs)
def test_what_cannot_be_covered_is_covered_as_far_as_it_can(
    options: Sequence[CoverOption], need: Need
) -> None:
    have = total_of(options, least_cover(options, need))
    others = [total_of(options, counts) for counts in all_counts(options, need)]
    assert have.firm_pods >= min(need.firm_pods, max(other.firm_pods for other in others))
    assert have.pods >= min(need.pods, max(other.pods for other in others))
    if need.beside(have).capacity:
        firm = [other for other in others if other.firm_pods >= min(need.firm_pods, have.firm_pods)]
        assert have.capacity == max(other.capacity for other in firm)


def test_the_last_replica_is_no_larger_than_what_is_missing() -> None:
    slices = CoverOption(cost=48, capacity=1, is_firm=True, most=2)
    gpu = CoverOption(cost=299, capacity=23, is_firm=True, most=2)
    assert least_cover([slices, gpu], Need(2)) == (2, 0)
    assert least_cover([slices, gpu], Need(3)) == (0, 1)
    assert least_cover([slices, gpu], Need(24, pods=2)) == (1, 1)
    # As many replicas as there may be carry less than is needed.
    assert least_cover([slices, gpu], Need(40, most_pods=1)) == (0, 1)
