"""Services of one kind, GPUs that are there and no more, slices in other hands."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.mig.boards import WHOLE
from tessera.domain.mig.demand import Kind, Offer, Service, met, needed
from tessera.domain.mig.fleet import Gpu, instances
from tessera.domain.mig.layouts import Spot, fault
from tessera.domain.mig.mix import cheapest_mix, ways
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, ONE, a_gpu, a_service

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb")

speeds = st.dictionaries(
    st.sampled_from(PROFILES), st.sampled_from([1.0, 2.5, 3.0, 4.0, 7.5]), min_size=1
)
alike = st.lists(
    st.builds(
        a_service,
        demand=st.sampled_from([0.5, 1.0, 4.0, 6.5, 9.0]),
        speeds=speeds,
        floor=st.integers(0, 2),
    ),
    min_size=1,
    max_size=3,
).map(lambda found: [replace(one, name=f"s{at}", alike=True) for at, one in enumerate(found)])


def limited(most: int, **fields: bool) -> list[Offer]:
    return [Offer(board=A100, price=1, most=most, **fields)]


def empty(count: int) -> list[Gpu]:
    return [a_gpu(f"gpu-{at}") for at in range(count)]


def fewest(services: list[Service], most: int) -> int | None:
    """GPUs for any choice of one kind for each; None when so many are not enough."""
    best = None
    for kinds in product(*(sorted(one.throughput) for one in services)):
        supply = Counter[str]()
        for one, kind in zip(services, kinds, strict=True):
            supply[kind.profile] += needed(one, one.throughput[kind])
        count = next((n for n in range(1, most + 1) if holds(supply, n)), None)
        best = count if best is None or (count is not None and count < best) else best
    return best


def holds(supply: Counter[str], gpus: int) -> bool:
    """Whether so many GPUs can be cut into these slices."""
    if not +supply:
        return True
    if not gpus:
        return False
    return any(
        holds(rest, gpus - 1)
        for way in ways(A100, PROFILES)
        if (rest := +(supply - Counter(dict(way)))) != +supply
    )


def one_kind(name: str, demand: float, speeds: dict[str, float], floor: int = 0) -> Service:
    return replace(a_service(name, demand, speeds, floor), alike=True)


@settings(max_examples=60, deadline=None)
@given(alike)
def test_no_other_choice_of_kinds_needs_fewer_gpus(services: list[Service]) -> None:
    got = cheapest_mix(services, ONE)
    assert all(len(pattern) == 1 for pattern in got.instances.values())
    assert got.bound <= got.cost
    best = fewest(services, 3)
    assert got.cost == best if best is not None else got.cost > 3


@settings(max_examples=60, deadline=None)
@given(alike, alike, st.sampled_from([0.5, 2.0, 6.0]), st.booleans())
def test_plans_of_one_kind_are_legal_serve_everybody_and_are_not_made_anew(
    before: list[Service], wanted: list[Service], worth: float, safe: bool
) -> None:
    offers = limited(30, sibling_safe=safe)
    there = plan_layouts(before, offers, empty(30), worth=worth).gpus
    got = plan_layouts(wanted, offers, there, worth=worth)
    assert [fault(A100, gpu.layout) for gpu in got.gpus] == [None] * 30
    assert got.unmet == ()
    sitting = instances(got.gpus)
    for one in wanted:
        assert len(sitting[one.name]) == 1
        assert met(one, sitting[one.name])
    again = plan_layouts(reversed(wanted), offers, reversed(got.gpus), worth=worth)
    assert again.changes.none


def test_a_service_keeps_its_kind_unless_another_saves_enough() -> None:
    chat = replace(a_service("chat", 4, {"1g.10gb": 1, "7g.80gb": 4}), alike=True)
    there = [a_gpu("one", "7g.80gb@0=chat"), a_gpu("two", "1g.10gb@0=code"), a_gpu("three")]
    code = replace(a_service("code", 1, {"1g.10gb": 1}), alike=True)
    plans = [plan_layouts([chat, code], limited(3), there, worth=one) for one in (0.5, 6.0)]
    assert [plan.used for plan in plans] == [2, 1]
    kinds = [next(iter(instances(plan.gpus)["chat"])).profile for plan in plans]
    assert kinds == ["7g.80gb", "1g.10gb"]


def test_what_saves_no_gpu_is_left_as_it_is() -> None:
    """Here an instance that is not needed any more, on a GPU that stays in use."""
    there = plan_layouts(
        [one_kind("chat", 0.5, {"2g.20gb": 1}), one_kind("code", 6.5, {"1g.10gb": 2.5})],
        limited(30),
        empty(30),
    ).gpus
    wanted = [one_kind("chat", 6.5, {"1g.10gb": 2.5}), one_kind("code", 0.5, {"1g.10gb": 1}, 2)]
    for safe in (True, False):
        offers = limited(30, sibling_safe=safe)
        got = plan_layouts(wanted, offers, there, worth=0.5)
        assert plan_layouts(wanted, offers, got.gpus, worth=0.5).changes.none


def test_instances_on_two_kinds_end_on_one() -> None:
    chat = replace(a_service("chat", 3, {"1g.10gb": 1, "3g.40gb": 1}), alike=True)
    there = [a_gpu("one", "1g.10gb@0=chat", "1g.10gb@1=chat", "3g.40gb@4=chat")]
    got = plan_layouts([chat], limited(1), there, worth=6)
    assert instances(got.gpus)["chat"] == Counter({Kind(A100.name, "1g.10gb"): 3})


def test_nothing_is_cut_beside_a_slice_in_use_where_the_whole_gpu_would_go() -> None:
    there = (a_gpu("one", "3g.40gb@4=chat"), a_gpu("two"))
    chat, code = a_service("chat", 3, {"3g.40gb": 3}), a_service("code", 1, {"1g.10gb": 1})
    beside = plan_layouts([chat, code], limited(2), there, worth=0.5)
    apart = plan_layouts([chat, code], limited(2, sibling_safe=False), there, worth=0.5)
    assert (beside.used, apart.used) == (1, 2)
    assert apart.gpus[0] == there[0]
    moved = plan_layouts([chat, code], limited(2, sibling_safe=False), there, worth=6)
    assert (moved.used, len(moved.changes.moves)) == (1, 1)


def test_slices_in_other_hands_stay_and_nobody_gets_them() -> None:
    held = replace(a_gpu("one", "3g.40gb@0", "1g.10gb@4"), fixed=(Spot(0, "3g.40gb"),))
    wanted = a_service("chat", 3, {"3g.40gb": 1})
    got = plan_layouts([wanted], limited(1), (held, a_gpu("two")), worth=6)
    assert [one.service for one in got.gpus[0].slices] == [None, "chat"]
    assert (got.gpus[0].slices[0].spot, got.gpus[0].fixed) == (Spot(0, "3g.40gb"), held.fixed)
    assert (got.unmet, got.cost) == ((), 1)


def test_what_is_paid_anyway_is_filled_first() -> None:
    held = replace(a_gpu("one", "3g.40gb@0"), fixed=(Spot(0, "3g.40gb"),))
    got = plan_layouts([a_service("chat", 1, {"3g.40gb": 1})], limited(1), (held, a_gpu("two")))
    assert (got.cost, got.bound) == (0, 0)
    assert got.gpus[1] == a_gpu("two")


def test_a_locked_gpu_keeps_its_layout_and_its_idle_slices_are_used() -> None:
    locked = replace(a_gpu("one", "2g.20gb@0", "1g.10gb@2=chat"), locked=True)
    wanted = a_service("chat", 3, {"1g.10gb": 1, "2g.20gb": 2})
    got = plan_layouts([wanted], limited(0), (locked,), worth=6)
    assert got.gpus == (replace(a_gpu("one", "2g.20gb@0=chat", "1g.10gb@2=chat"), locked=True),)


def test_a_node_that_has_to_be_emptied_is_left_alone_where_another_is_free() -> None:
    def on(node: str, gpu: Gpu) -> Gpu:
        return replace(gpu, node=node)

    there = (
        on("a", a_gpu("a-0", "3g.40gb@0=chat", "3g.40gb@4=chat")),
        on("a", a_gpu("a-1")),
        on("b", a_gpu("b-0")),
    )
    wanted = [a_service("chat", 2, {"3g.40gb": 1}), a_service("code", 1, {"1g.10gb": 1})]
    offers = limited(3, sibling_safe=False, by_node=True)
    got = plan_layouts(wanted, offers, there, worth=6)
    assert [gpu.name for gpu in got.gpus if gpu.used] == ["a-0", "b-0"]
    assert got.changes.moves == ()


@pytest.mark.parametrize("one_kind", [False, True])
def test_what_does_not_fit_is_served_as_far_as_it_goes_large_floors_first(one_kind: bool) -> None:
    def asking(name: str, demand: float, floor: int) -> Service:
        return replace(a_service(name, demand, {"7g.80gb": 1}, floor), alike=one_kind)

    services = [asking("a", 3, 1), asking("b", 3, 2), asking("c", 1, 1)]
    got = plan_layouts(services, limited(5), empty(5), worth=6)
    counts = {name: kinds.total() for name, kinds in instances(got.gpus).items()}
    assert (counts, got.unmet) == ({"a": 1, "b": 3, "c": 1}, ("a",))
    fewer = plan_layouts(services, limited(3), empty(3), worth=6)
    counts = {name: kinds.total() for name, kinds in instances(fewer.gpus).items()}
    assert (counts["b"], fewer.unmet) == (2, ("a", "b", "c")[: len(fewer.unmet)])


def test_limits_hold_when_a_fleet_is_planned_again() -> None:
    there = plan_layouts([a_service("a", 2, {WHOLE: 1})], limited(3)).gpus
    got = plan_layouts([a_service("a", 5, {WHOLE: 1})], limited(3), there, worth=6)
    assert (len(got.gpus), got.used, got.unmet) == (3, 3, ("a",))


def test_unlimited_boards_serve_what_limited_ones_cannot() -> None:
    other = replace(A100, name="other")
    offers = [Offer(board=A100, price=1, most=1), Offer(board=other, price=50)]
    both = {Kind(A100.name, WHOLE): 1.0, Kind("other", WHOLE): 1.0}
    got = cheapest_mix([Service(name="a", demand=3, throughput=both, alike=True)], offers)
    assert (got.unmet, got.cost) == ((), 150)
