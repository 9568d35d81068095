"""What is known of the GPUs of a pool, and when it is said that nothing can be."""

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
from tessera.domain.hardware.pools import discover
from tessera.domain.mig.gpu_models import gpu_models
from tessera.domain.mig.layouts import Layout, SlicePlacement, geometry
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.layout_search import layouts_for_counts
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Pool
from tests.builders import A100, H100, NOW, a_node, a_pool
from tests.mig_oracles import enumerate_layouts

BOARD = gpu_models()["A100-80GB"]
LAYOUTS = enumerate_layouts(
    BOARD, ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "1g.20gb")
)


def seen(
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


def told(*gpus: ObservedGpu, problem: str = "", cuts: bool = False) -> ObservedNodeLayout:
    status = NodeLayoutStatus(gpus=gpus, problem=problem, partitioning_enabled=cuts)
    return ObservedNodeLayout(name="a100-0", generation=1, spec=NodeLayoutSpec(), status=status)


def ground(node: Node, *layouts: ObservedNodeLayout, pool: Pool | None = None) -> MigNode:
    (view,) = discover([pool or a_pool()], [node], date(2026, 11, 20))
    (found,) = mig_nodes(view, [node], layouts)
    return found


def counts(found: MigNode) -> Counter[str]:
    return Counter(spot.profile for card in found.gpus for spot in card.layout)


def test_an_agent_tells_places_pods_and_processes() -> None:
    one = ObservedSlice(profile="3g.40gb", start=4, pods=("team-a/chat-0",), processes=2)
    gpus = (seen(one), seen(index=1, mode="Disabled"))
    node = a_node(slices={"3g.40gb": 1}, whole=1)
    found = ground(node, told(*gpus, cuts=True))
    (card,) = found.gpus
    (tile,) = card.instances
    assert (card.uuid, tile.placement) == ("GPU-0", SlicePlacement(4, "3g.40gb"))
    assert (tile.holders, tile.processes) == ((Ref("team-a", "chat-0"),), 2)
    assert (found.whole_gpus, found.reports_pods, found.can_partition) == (1, True, True)


def test_an_agent_that_can_tell_nothing_leaves_labels_and_resources() -> None:
    found = ground(a_node(slices={"3g.40gb": 2}), told(problem="no driver"))
    assert (found.reports_pods, counts(found)) == (False, {"3g.40gb": 2})
    assert found.node_layout is not None


def test_a_gpu_whose_mode_goes_is_told_to_need_a_reset() -> None:
    found = ground(a_node(slices={"3g.40gb": 1}), told(seen(mode="Disabling")))
    assert [card.fault for card in found.gpus] == ["ResetRequired"]


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ((seen(product=H100),), f"GPU 0 is {H100} by its driver and {A100} by its label"),
        ((seen(), seen(index=1)), "the driver reports 2 GPUs, its label nvidia.com/gpu.count is 1"),
        (
            (seen(ObservedSlice(profile="1g.5gb", start=0)),),
            "GPU 0: A100-80GB has no profile 1g.5gb",
        ),
        ((seen(ObservedSlice(profile="3g.40gb", start=2)),), "GPU 0: 3g.40gb cannot start at 2"),
    ],
)
def test_a_node_whose_driver_contradicts_it_is_left_alone(
    gpus: Sequence[ObservedGpu], words: str
) -> None:
    found = ground(a_node(slices={"3g.40gb": 1}), told(*gpus))
    assert found.gpus == ()
    assert words in (found.inconsistency or "")


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (a_node(slices={"3g.40gb": 3}), "1 A100-80GB GPU cannot be partitioned into 3x 3g.40gb"),
        (a_node(slices={"3g.71gb": 1}), "A100-80GB has no profile 3g.71gb"),
        (a_node(slices={"3g.40gb": 2}, whole=1), "install tessera-node"),
        (a_node(slices={"3g.40gb": 2}, labels={"nvidia.com/gpu.count": "many"}), "'many'"),
        (a_node(whole=2, product="NVIDIA-L4"), "no MIG profiles are known for NVIDIA-L4"),
        (a_node(whole=7, product=f"{A100}-MIG-1g.10gb"), "mig.strategy=mixed"),
    ],
)
def test_numbers_that_fit_no_layout_are_said(node: Node, words: str) -> None:
    found = ground(node)
    assert found.gpus == ()
    assert words in (found.inconsistency or "")


def test_a_node_without_slices_has_whole_gpus() -> None:
    found = ground(a_node(whole=8))
    assert (found.gpus, found.whole_gpus, found.inconsistency) == ((), 8, None)


def test_gpus_in_mig_mode_without_a_slice_are_cards() -> None:
    node = a_node(labels={"nvidia.com/gpu.count": "2", "nvidia.com/gpu.replicas": "0"})
    assert [card.layout for card in ground(node).gpus] == [(), ()]


def test_keys_with_a_zero_are_no_slices() -> None:
    node = a_node(slices={"3g.40gb": 2, "1g.10gb": 0})
    assert counts(ground(node)) == {"3g.40gb": 2}


def test_while_the_device_plugin_is_away_labels_tell() -> None:
    node = a_node(slices={"3g.40gb": 0}, labels={"nvidia.com/mig-3g.40gb.count": "2"})
    assert counts(ground(node)) == {"3g.40gb": 2}


def test_a_profile_with_media_engines_is_known_by_its_resource() -> None:
    node = a_node(slices={"1g.10gb.me": 1, "1g.10gb": 6})
    assert counts(ground(node)) == {"1g.10gb+me": 1, "1g.10gb": 6}


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
    node = a_node(slices={"3g.40gb": 3, "1g.10gb": 2}, cut=2)
    first, second = ground(node, pool=pool).gpus
    assert first.layout == (
        SlicePlacement(0, "1g.10gb"),
        SlicePlacement(1, "1g.10gb"),
        SlicePlacement(4, "3g.40gb"),
    )
    assert geometry(second.layout) == (("3g.40gb", 2),)


@settings(deadline=None)
@given(st.lists(st.sampled_from(LAYOUTS), max_size=8), st.booleans())
def test_the_numbers_of_any_layouts_are_spread_out_again(found: list[Layout], known: bool) -> None:
    """Not always in the same way, unless it was asked for; another number of slices never."""
    total = Counter(spot.profile for layout in found for spot in layout)
    wanted = tuple(sorted(total.items()))
    got = layouts_for_counts(BOARD, wanted, len(found), tuple(found) if known else ())
    assert got is not None
    assert Counter(spot.profile for layout in got for spot in layout) == total
    assert not known or list(got) == found


def test_too_many_slices_for_sixteen_gpus_are_refused_quickly() -> None:
    wanted = (("1g.10gb", 40), ("2g.20gb", 20), ("3g.40gb", 16), ("4g.40gb", 9))
    assert layouts_for_counts(BOARD, wanted, 16) is None
