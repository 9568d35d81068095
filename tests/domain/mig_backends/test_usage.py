"""Which pods use slices, and what idle and stranded slices cost."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.ref import Ref
from tessera.domain.hardware.device import sized_profiles, slice_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.gpu_layouts import Layout
from tessera.domain.hardware.gpu_models import WHOLE_GPU, find_gpu_model
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.mig_backends.usage import SliceState, pool_usage, share, slice_usages
from tests.builders import a_pod
from tests.mig_builders import A100
from tests.mig_oracles import enumerate_layouts

LAYOUTS = enumerate_layouts(
    A100, [profile.name for profile in A100.profiles if not profile.has_media_engines]
)
A_HUNDREDTH = Decimal("0.01")


def a_mig_node(*layouts: Layout, name: str = "n") -> MigNode:
    gpus = (
        MigGpu(
            index=index, instances=tuple(GpuInstance(placement=placement) for placement in layout)
        )
        for index, layout in enumerate(layouts)
    )
    return MigNode(name=name, gpu_model=A100, ready=True, gpus=tuple(gpus))


@pytest.mark.parametrize("product", [name for name in sorted(products()) if find_gpu_model(name)])
def test_a_slice_has_the_share_that_it_is_billed(product: str) -> None:
    gpu_model = find_gpu_model(product)
    assert gpu_model is not None
    billed = {
        gi_profile.name: slice_hardware(products()[product], gi_profile.name)
        for gi_profile in sized_profiles(products()[product])
    }
    assert {name: share(gpu_model, name) for name in billed} == {
        name: billing_weight(hardware) for name, hardware in billed.items() if hardware is not None
    }
    assert share(gpu_model, WHOLE_GPU) == 1


@given(st.lists(st.sampled_from(LAYOUTS), max_size=4))
def test_slices_and_what_is_stranded_make_up_the_gpus(layouts: list[Layout]) -> None:
    node = a_mig_node(*layouts)
    usages = slice_usages([node], ())
    usage = pool_usage([node], usages)
    assert usage.gpus == len(layouts)
    assert usage.stranded >= 0
    assert abs(usage.stranded + usage.idle - usage.gpus) < A_HUNDREDTH
    assert sum(usage.slices.values()) == sum(map(len, layouts))


@given(st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=3), st.data())
def test_without_an_agent_as_many_slices_are_used_as_engines_hold(
    layouts: list[Layout], data: st.DataObject
) -> None:
    node = a_mig_node(*layouts)
    slices = Counter(placement.profile for layout in layouts for placement in layout)
    used_slices = {
        profile: data.draw(st.integers(0, count)) for profile, count in sorted(slices.items())
    }
    pods = [
        replace(
            a_pod(),
            ref=Ref("team-a", f"{profile}-{number}"),
            node="n",
            devices={f"nvidia.com/mig-{profile}": 1},
            ended=None,
        )
        for profile, count in used_slices.items()
        for number in range(count)
    ]
    usage = pool_usage([node], slice_usages([node], pods))
    reported = {profile: usage.slices.get((profile, SliceState.USED), 0) for profile in used_slices}
    assert reported == used_slices
    assert slice_usages([node], pods) == slice_usages([node], pods[::-1])


def test_a_leaving_pod_is_displaced_and_a_process_without_a_pod_uses_its_slice() -> None:
    placements = LAYOUTS[-1]
    leaving_pod = Ref("team-a", "chat-0")
    instances = (
        GpuInstance(placement=placements[0], holders=(leaving_pod,)),
        *(GpuInstance(placement=placement) for placement in placements[1:]),
    )
    node = replace(a_mig_node(), gpus=(MigGpu(index=0, instances=instances),), reports_pods=True)
    assert slice_usages([node], (), {leaving_pod})[0].state is SliceState.DISPLACED
    alone = replace(
        node,
        gpus=(MigGpu(index=0, instances=(GpuInstance(placement=placements[0], processes=1),)),),
    )
    assert [usage.state for usage in slice_usages([alone], ())] == [SliceState.USED]


def test_an_engine_over_two_slices_holds_both() -> None:
    layout = next(
        candidate
        for candidate in LAYOUTS
        if [placement.profile for placement in candidate] == ["3g.40gb"] * 2
    )
    pod = replace(a_pod(), node="n", devices={"nvidia.com/mig-3g.40gb": 2})
    assert [usage.holders for usage in slice_usages([a_mig_node(layout)], [pod])] == [
        (pod.ref,)
    ] * 2
