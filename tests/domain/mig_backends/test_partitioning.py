from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from tessera.api.node_layout import DesiredGpu, PlacedSlice
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement, layout_error
from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.mig_backends.partitioning import (
    DriverGpu,
    DriverInstance,
    InstanceOperation,
    gpu_status,
    plan_partitioning,
)
from tests.mig_oracles import enumerate_layouts

A100 = gpu_models()["A100-80GB"]


@cache
def states() -> tuple[Layout, ...]:
    return enumerate_layouts(A100, [gi_profile.name for gi_profile in A100.profiles])


layouts = st.integers(0, 2318).map(lambda number: states()[number])


def a_gpu(layout: Layout) -> DriverGpu:
    return DriverGpu(
        index=0,
        uuid="GPU-1",
        product="NVIDIA-A100-SXM4-80GB",
        memory_mib=81920,
        mode="Enabled",
        gpu_model=A100,
        instances=tuple(
            DriverInstance(placement=placement, uuid=f"MIG-{placement.start}")
            for placement in layout
        ),
    )


def wanted(layout: Layout) -> DesiredGpu:
    slices = tuple(
        PlacedSlice(profile=placement.profile, start=placement.start) for placement in layout
    )
    return DesiredGpu(uuid="GPU-1", slices=slices)


def done(layout: Layout, operation: InstanceOperation) -> Layout:
    if operation.action == "destroy":
        assert operation.placement in layout
        return tuple(placement for placement in layout if placement != operation.placement)
    assert operation.placement not in layout
    return tuple(sorted((*layout, operation.placement)))


@given(layouts, layouts)
def test_every_layout_becomes_every_other_and_each_step_is_legal(
    before: Layout, after: Layout
) -> None:
    now = before
    for operation in plan_partitioning(a_gpu(before), wanted(after), {}).operations:
        now = done(now, operation)
        assert layout_error(A100, now) is None
    assert now == after
    assert not set(before) & set(after) - set(now)
    assert plan_partitioning(a_gpu(now), wanted(after), {}).operations == ()


@given(layouts, layouts, st.sets(st.integers(0, 6)))
def test_instances_in_use_stay_and_are_reported_as_a_problem(
    before: Layout, after: Layout, starts: set[int]
) -> None:
    in_use = {placement for placement in before if placement.start in starts}
    pods_by_device = {f"MIG-{placement.start}": ("a/pod",) for placement in in_use}
    now = before
    first = plan_partitioning(a_gpu(before), wanted(after), pods_by_device)
    for operation in first.operations:
        now = done(now, operation)
        assert layout_error(A100, now) is None
    assert in_use <= set(now)
    in_the_way = in_use - set(after)
    assert (first.problem is not None) == bool(in_the_way)
    if not in_the_way:
        assert now == after
    again = plan_partitioning(a_gpu(now), wanted(after), pods_by_device)
    assert again.operations == ()
    assert (again.problem is None) == (now == after)


def test_a_pod_on_the_whole_gpu_keeps_all_of_its_slices() -> None:
    gpu = a_gpu((SlicePlacement(4, "3g.40gb"),))
    partition_plan = plan_partitioning(gpu, wanted(()), {"GPU-1": ("a/whole",)})
    assert partition_plan.operations == ()
    assert partition_plan.problem is not None
    assert partition_plan.problem.message.startswith("3g.40gb@4 is in use by a/whole")
    assert gpu_status(gpu, {"GPU-1": ("a/whole",)}).pods == ("a/whole",)


def test_an_alias_of_a_profile_is_the_same_slice() -> None:
    assert (
        plan_partitioning(
            a_gpu((SlicePlacement(4, "3g.40gb"),)), wanted((SlicePlacement(4, "3g.39gb"),)), {}
        ).operations
        == ()
    )
