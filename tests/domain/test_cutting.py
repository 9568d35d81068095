from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from tessera.api.node_layout import DesiredGpu, PlacedSlice
from tessera.domain.cutting import Deed, Gpu, Instance, cutting, seen
from tessera.domain.mig.boards import boards
from tessera.domain.mig.layouts import Layout, Spot, fault, placed

A100 = boards()["A100-80GB"]


@cache
def states() -> tuple[Layout, ...]:
    return placed(A100, [cut.profile for cut in A100.cuts])


layouts = st.integers(0, 2318).map(lambda number: states()[number])


def a_gpu(layout: Layout) -> Gpu:
    return Gpu(
        index=0,
        uuid="GPU-1",
        product="NVIDIA-A100-SXM4-80GB",
        memory_mib=81920,
        mode="enabled",
        board=A100,
        instances=tuple(Instance(spot=spot, uuid=f"MIG-{spot.start}") for spot in layout),
    )


def wanted(layout: Layout) -> DesiredGpu:
    slices = tuple(PlacedSlice(profile=spot.profile, start=spot.start) for spot in layout)
    return DesiredGpu(uuid="GPU-1", slices=slices)


def done(layout: Layout, deed: Deed) -> Layout:
    if deed.verb == "destroy":
        assert deed.spot in layout
        return tuple(spot for spot in layout if spot != deed.spot)
    assert deed.spot not in layout
    return tuple(sorted((*layout, deed.spot)))


@given(layouts, layouts)
def test_every_layout_becomes_every_other_and_each_step_is_legal(
    before: Layout, after: Layout
) -> None:
    now = before
    for deed in cutting(a_gpu(before), wanted(after), {}).deeds:
        now = done(now, deed)
        assert fault(A100, now) is None
    assert now == after
    assert not set(before) & set(after) - set(now)
    assert cutting(a_gpu(now), wanted(after), {}).deeds == ()


@given(layouts, layouts, st.sets(st.integers(0, 6)))
def test_what_is_held_stays_and_what_remains_to_be_done_is_told(
    before: Layout, after: Layout, starts: set[int]
) -> None:
    held = {spot for spot in before if spot.start in starts}
    holders = {f"MIG-{spot.start}": ("a/pod",) for spot in held}
    now = before
    first = cutting(a_gpu(before), wanted(after), holders)
    for deed in first.deeds:
        now = done(now, deed)
        assert fault(A100, now) is None
    assert held <= set(now)
    in_the_way = held - set(after)
    assert (first.trouble is not None) == bool(in_the_way)
    if not in_the_way:
        assert now == after
    again = cutting(a_gpu(now), wanted(after), holders)
    assert again.deeds == ()
    assert (again.trouble is None) == (now == after)


def test_a_pod_on_the_whole_gpu_keeps_all_of_its_slices() -> None:
    gpu = a_gpu((Spot(4, "3g.40gb"),))
    got = cutting(gpu, wanted(()), {"GPU-1": ("a/whole",)})
    assert got.deeds == ()
    assert got.trouble is not None
    assert got.trouble.message.startswith("3g.40gb@4 is held by a/whole")
    assert seen(gpu, {"GPU-1": ("a/whole",)}).pods == ("a/whole",)


def test_another_spelling_of_a_profile_is_the_same_slice() -> None:
    assert cutting(a_gpu((Spot(4, "3g.40gb"),)), wanted((Spot(4, "3g.39gb"),)), {}).deeds == ()
