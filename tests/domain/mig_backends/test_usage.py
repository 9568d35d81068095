"""Who sits on slices, and what is paid for nothing."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.ref import Ref
from tessera.domain.hardware.device import slice_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.mig.gpu_models import WHOLE_GPU, find_gpu_model
from tessera.domain.mig.layouts import Layout
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.mig_backends.usage import SliceState, pool_usage, share, slice_usages
from tests.builders import a_pod
from tests.mig_builders import A100
from tests.mig_oracles import enumerate_layouts

LAYOUTS = enumerate_layouts(A100, [cut.name for cut in A100.profiles if not cut.has_media_engines])
A_HUNDREDTH = Decimal("0.01")


def a_ground(*layouts: Layout, name: str = "n") -> MigNode:
    cards = (
        MigGpu(index=index, instances=tuple(GpuInstance(placement=spot) for spot in layout))
        for index, layout in enumerate(layouts)
    )
    return MigNode(name=name, gpu_model=A100, ready=True, gpus=tuple(cards))


@pytest.mark.parametrize("product", [name for name in sorted(products()) if find_gpu_model(name)])
def test_a_slice_has_the_share_that_it_is_billed(product: str) -> None:
    board = find_gpu_model(product)
    assert board is not None
    billed = {
        one.profile: slice_hardware(products()[product], one.profile)
        for one in products()[product].slices
    }
    assert {name: share(board, name) for name in billed} == {
        name: billing_weight(one) for name, one in billed.items() if one is not None
    }
    assert share(board, WHOLE_GPU) == 1


@given(st.lists(st.sampled_from(LAYOUTS), max_size=4))
def test_slices_and_what_is_stranded_make_up_the_gpus(layouts: list[Layout]) -> None:
    ground = a_ground(*layouts)
    found = slice_usages([ground], ())
    told = pool_usage([ground], found)
    assert told.gpus == len(layouts)
    assert told.stranded >= 0
    assert abs(told.stranded + told.idle - told.gpus) < A_HUNDREDTH
    assert sum(told.slices.values()) == sum(map(len, layouts))


@given(st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=3), st.data())
def test_without_an_agent_as_many_slices_are_used_as_engines_hold(
    layouts: list[Layout], data: st.DataObject
) -> None:
    ground = a_ground(*layouts)
    cut = Counter(spot.profile for layout in layouts for spot in layout)
    held = {profile: data.draw(st.integers(0, count)) for profile, count in sorted(cut.items())}
    pods = [
        replace(
            a_pod(),
            ref=Ref("team-a", f"{profile}-{number}"),
            node="n",
            devices={f"nvidia.com/mig-{profile}": 1},
            ended=None,
        )
        for profile, count in held.items()
        for number in range(count)
    ]
    told = pool_usage([ground], slice_usages([ground], pods))
    used = {profile: told.slices.get((profile, SliceState.USED), 0) for profile in held}
    assert used == held
    assert slice_usages([ground], pods) == slice_usages([ground], pods[::-1])


def test_who_has_to_leave_is_doomed_and_a_process_without_a_pod_uses_its_slice() -> None:
    spots = LAYOUTS[-1]
    leaves = Ref("team-a", "chat-0")
    tiles = (
        GpuInstance(placement=spots[0], holders=(leaves,)),
        *(GpuInstance(placement=one) for one in spots[1:]),
    )
    ground = replace(a_ground(), gpus=(MigGpu(index=0, instances=tiles),), reports_pods=True)
    assert slice_usages([ground], (), {leaves})[0].state is SliceState.DISPLACED
    alone = replace(
        ground, gpus=(MigGpu(index=0, instances=(GpuInstance(placement=spots[0], processes=1),)),)
    )
    assert [one.state for one in slice_usages([alone], ())] == [SliceState.USED]


def test_an_engine_over_two_slices_holds_both() -> None:
    layout = next(one for one in LAYOUTS if [spot.profile for spot in one] == ["3g.40gb"] * 2)
    pod = replace(a_pod(), node="n", devices={"nvidia.com/mig-3g.40gb": 2})
    assert [one.holders for one in slice_usages([a_ground(layout)], [pod])] == [(pod.ref,)] * 2
