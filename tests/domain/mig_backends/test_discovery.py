"""What is known of the GPUs of a pool, and when they cannot be known."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.mig import GpuTarget, MigPlan, MigStatus, NodeTarget
from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus, ObservedGpu, ObservedSlice
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement, geometry
from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.hardware.pools import discover
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.layout_search import layouts_for_counts
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout, silenced
from tessera.domain.observed.snapshot import Node, Pool
from tests.builders import A100, H100, NOW, a_node, a_pool
from tests.mig_oracles import enumerate_layouts

GPU_MODEL = gpu_models()["A100-80GB"]
LAYOUTS = enumerate_layouts(
    GPU_MODEL, ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "1g.20gb")
)


def an_observed_gpu(
    *slices: ObservedSlice, index: int = 0, product: str = A100, mode: str = "Enabled"
) -> ObservedGpu:
    return ObservedGpu.model_validate(
        {
            "index": index,
            "uuid": f"GPU-{index}",
            "product": product,
            "memoryMiB": 81920,
            "mode": mode,
            "slices": slices,
        }
    )


def a_node_layout(
    *gpus: ObservedGpu, problem: str = "", partitions: bool = False
) -> ObservedNodeLayout:
    status = NodeLayoutStatus(gpus=gpus, problem=problem, partitioning_enabled=partitions)
    return ObservedNodeLayout(name="a100-0", generation=1, spec=NodeLayoutSpec(), status=status)


def discover_node(node: Node, *layouts: ObservedNodeLayout, pool: Pool | None = None) -> MigNode:
    (view,) = discover([pool or a_pool()], [node], date(2026, 11, 20))
    (mig_node,) = mig_nodes(view, [node], layouts)
    return mig_node


def profile_counts(mig_node: MigNode) -> Counter[str]:
    return Counter(placement.profile for gpu in mig_node.gpus for placement in gpu.layout)


def test_an_agent_reports_placements_pods_and_processes() -> None:
    observed_slice = ObservedSlice(profile="3g.40gb", start=4, pods=("team-a/chat-0",), processes=2)
    gpus = (an_observed_gpu(observed_slice), an_observed_gpu(index=1, mode="Disabled"))
    node = a_node(slices={"3g.40gb": 1}, whole=1)
    mig_node = discover_node(node, a_node_layout(*gpus, partitions=True))
    (gpu,) = mig_node.gpus
    (instance,) = gpu.instances
    assert (gpu.uuid, instance.placement) == ("GPU-0", SlicePlacement(4, "3g.40gb"))
    assert (instance.holders, instance.processes) == ((Ref("team-a", "chat-0"),), 2)
    assert (mig_node.whole_gpus, mig_node.reports_pods, mig_node.can_partition) == (1, True, True)


def test_with_an_agent_that_reports_nothing_labels_and_resources_decide() -> None:
    mig_node = discover_node(a_node(slices={"3g.40gb": 2}), a_node_layout(problem="no driver"))
    assert (mig_node.reports_pods, profile_counts(mig_node)) == (False, {"3g.40gb": 2})
    assert mig_node.node_layout is not None


def test_a_gpu_whose_mode_is_being_disabled_needs_a_reset() -> None:
    mig_node = discover_node(
        a_node(slices={"3g.40gb": 1}), a_node_layout(an_observed_gpu(mode="Disabling"))
    )
    assert [gpu.fault for gpu in mig_node.gpus] == ["ResetRequired"]


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (
            (an_observed_gpu(product=H100),),
            f"GPU 0 is {H100} by its driver and {A100} by its label",
        ),
        (
            (an_observed_gpu(), an_observed_gpu(index=1)),
            "the driver reports 2 GPUs, its label nvidia.com/gpu.count is 1",
        ),
        (
            (an_observed_gpu(ObservedSlice(profile="1g.5gb", start=0)),),
            "GPU 0: A100-80GB has no profile 1g.5gb",
        ),
        (
            (an_observed_gpu(ObservedSlice(profile="3g.40gb", start=2)),),
            "GPU 0: 3g.40gb cannot start at 2",
        ),
    ],
)
def test_a_node_whose_driver_contradicts_it_is_left_alone(
    gpus: Sequence[ObservedGpu], words: str
) -> None:
    mig_node = discover_node(a_node(slices={"3g.40gb": 1}), a_node_layout(*gpus))
    assert mig_node.gpus == ()
    assert words in (mig_node.inconsistency or "")


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (a_node(slices={"3g.40gb": 3}), "1 A100-80GB GPU cannot be partitioned into 3x 3g.40gb"),
        (a_node(slices={"3g.71gb": 1}), "A100-80GB has no profile 3g.71gb"),
        (a_node(slices={"3g.40gb": 2}, whole=1), "install tessera-node"),
        (a_node(slices={"3g.40gb": 2}, labels={"nvidia.com/gpu.count": "many"}), "'many'"),
        (a_node(labels={"nvidia.com/gpu.count": "1000000"}), "not a number up to 16"),
        (a_node(labels={"nvidia.com/gpu.count": "9" * 5000}), "not a number up to 16"),
        (a_node(whole=2, product="NVIDIA-L4"), "no MIG profiles are known for NVIDIA-L4"),
        (a_node(whole=7, product=f"{A100}-MIG-1g.10gb"), "mig.strategy=mixed"),
    ],
)
def test_numbers_that_fit_no_layout_are_reported(node: Node, words: str) -> None:
    mig_node = discover_node(node)
    assert mig_node.gpus == ()
    assert words in (mig_node.inconsistency or "")


def test_a_node_without_slices_has_whole_gpus() -> None:
    mig_node = discover_node(a_node(whole=8))
    assert (mig_node.gpus, mig_node.whole_gpus, mig_node.inconsistency) == ((), 8, None)


def test_gpus_in_mig_mode_without_a_slice_are_mig_gpus() -> None:
    node = a_node(labels={"nvidia.com/gpu.count": "2", "nvidia.com/gpu.replicas": "0"})
    assert [gpu.layout for gpu in discover_node(node).gpus] == [(), ()]


def test_keys_with_a_zero_are_no_slices() -> None:
    node = a_node(slices={"3g.40gb": 2, "1g.10gb": 0})
    assert profile_counts(discover_node(node)) == {"3g.40gb": 2}


def test_while_the_device_plugin_is_away_labels_decide() -> None:
    node = a_node(slices={"3g.40gb": 0}, labels={"nvidia.com/mig-3g.40gb.count": "2"})
    assert profile_counts(discover_node(node)) == {"3g.40gb": 2}


def test_a_slice_that_is_unhealthy_still_exists() -> None:
    node = a_node(slices={"1g.10gb": 7})
    labels = {**node.labels, "nvidia.com/mig-1g.10gb.count": "7"}
    unhealthy = replace(node, labels=labels, allocatable={"nvidia.com/mig-1g.10gb": 6})
    assert profile_counts(discover_node(unhealthy)) == {"1g.10gb": 7}


def test_an_agent_that_cannot_read_its_gpus_or_is_silent_leaves_what_it_reported_last() -> None:
    node, gpu = (
        a_node(slices={"3g.40gb": 1}),
        an_observed_gpu(ObservedSlice(profile="3g.40gb", start=4, pods=("team-a/chat-0",))),
    )
    known = discover_node(node, a_node_layout(gpu))
    failing = discover_node(node, a_node_layout(gpu, problem="GPU is lost"))
    silent = discover_node(node, silenced(a_node_layout(gpu), NOW))
    assert known.gpus == failing.gpus == silent.gpus
    assert failing.reports_pods
    assert silent.reports_pods
    assert (known.unavailable, failing.unavailable) == (
        None,
        "its tessera-node reports: GPU is lost",
    )
    assert f"silent since {NOW:%Y-%m-%d %H:%M:%S}" in (silent.unavailable or "")


def test_a_profile_with_media_engines_is_known_by_its_resource() -> None:
    node = a_node(slices={"1g.10gb.me": 1, "1g.10gb": 6})
    assert profile_counts(discover_node(node)) == {"1g.10gb+me": 1, "1g.10gb": 6}


def test_what_was_planned_is_recognised_in_the_numbers() -> None:
    gpus = (
        GpuTarget(gpu=0, slices=("1g.10gb@0", "1g.10gb@1", "3g.40gb@4")),
        GpuTarget(gpu=1, slices=("3g.40gb", "3g.40gb")),
    )
    plan = MigPlan.model_validate(
        {
            "name": "one",
            "at": NOW,
            "gpusBefore": 2,
            "gpusAfter": 2,
            "perHourBefore": "4",
            "perHourAfter": "4",
            "lowerBound": "4",
            "gap": "0",
            "nodes": [NodeTarget(node="a100-0", gpus=gpus)],
        }
    )
    pool = a_pool()
    pool = replace(pool, status=pool.status.model_copy(update={"mig": MigStatus(target=plan)}))
    node = a_node(slices={"3g.40gb": 3, "1g.10gb": 2}, partitioned=2)
    first, second = discover_node(node, pool=pool).gpus
    assert first.layout == (
        SlicePlacement(0, "1g.10gb"),
        SlicePlacement(1, "1g.10gb"),
        SlicePlacement(4, "3g.40gb"),
    )
    assert geometry(second.layout) == (("3g.40gb", 2),)


@settings(deadline=None)
@given(st.lists(st.sampled_from(LAYOUTS), max_size=8), st.booleans())
def test_the_numbers_of_any_layouts_are_spread_out_again(
    layouts: list[Layout], known: bool
) -> None:
    """The layouts may differ unless they are given; the numbers of slices never do."""
    total = Counter(placement.profile for layout in layouts for placement in layout)
    wanted = tuple(sorted(total.items()))
    split_layouts = layouts_for_counts(
        GPU_MODEL, wanted, len(layouts), tuple(layouts) if known else ()
    )
    assert split_layouts is not None
    assert Counter(placement.profile for layout in split_layouts for placement in layout) == total
    assert not known or list(split_layouts) == layouts


def test_too_many_slices_for_sixteen_gpus_are_refused_quickly() -> None:
    wanted = (("1g.10gb", 40), ("2g.20gb", 20), ("3g.40gb", 16), ("4g.40gb", 9))
    assert layouts_for_counts(GPU_MODEL, wanted, 16) is None
