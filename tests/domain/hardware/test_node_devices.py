"""Labels and resources of a node that contradict: what is believed, what is offered, the words."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.pool_reasons import Discovered
from tessera.domain.hardware.gpu_catalog import Product, catalog, products
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.hardware.node_devices import gpus_in_mig_mode, shared_resources
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.observed.snapshot import Node, Ref
from tests.builders import A100, NOW, a_node, a_pool, a_service, a_snapshot, plan_of

CHAT = Ref("team-a", "chat")
GPU, COUNT, PRODUCT = "nvidia.com/gpu", "nvidia.com/gpu.count", "nvidia.com/gpu.product"
SHARED = {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.sharing-strategy": "time-slicing"}
CUT = {"1g.10gb": 6, "2g.20gb": 4}


def view_of(*nodes: Node) -> PoolView:
    (view,) = discover((a_pool("a100", "2.00"),), nodes, NOW.date())
    return view


def offered(view: PoolView) -> Mapping[str, int]:
    return {offer.hardware.name: offer.replicas for offer in view.offers}


def without_label(node: Node, label: str) -> Node:
    return replace(node, labels={key: text for key, text in node.labels.items() if key != label})


def with_devices(node: Node, **devices: int) -> Node:
    changed = {f"nvidia.com/{name}": count for name, count in devices.items()}
    return replace(node, allocatable={**node.allocatable, **changed})


RIGHT = a_node(slices=CUT, partitioned=2)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (with_devices(RIGHT, gpu=2), "Node/a100-0: nvidia.com/gpu.count is 2 beside 2 whole GPUs"),
        (with_devices(RIGHT, gpu=1), "is 2 beside 1 whole GPU and slices of 2 GPUs"),
        (without_label(RIGHT, COUNT), "nvidia.com/gpu.count is missing beside slices of 2 GPUs"),
        (a_node(slices=CUT, labels={COUNT: "1"}), "gpu.count is 1 beside slices of 2 GPUs"),
        (
            a_node(slices=CUT, labels={COUNT: "many"}),
            "gpu.count is no count ('many') beside slices",
        ),
    ],
)
def test_slices_have_the_price_of_the_gpus_that_they_need(node: Node, says: str) -> None:
    right, view = view_of(RIGHT), view_of(node)
    assert offered(view) == {"1g.10gb": 6, "2g.20gb": 4}
    assert [offer.comparison_price for offer in view.offers] == [
        offer.comparison_price for offer in right.offers
    ]
    assert right.discovered.reason == Discovered.DEVICES_FOUND
    assert view.discovered.reason == Discovered.INCONSISTENT_LABELS
    assert view.discovered.reason.is_true
    assert says in view.discovered.message
    assert (view.gpus, view.slices) == (0, right.slices)


def test_whole_gpus_beside_slices_are_offered_where_the_label_leaves_them_room() -> None:
    view = view_of(a_node(slices=CUT, partitioned=2, whole=2))
    assert view.discovered.reason == Discovered.DEVICES_FOUND
    assert offered(view) == {"1g.10gb": 6, "2g.20gb": 4, "whole GPU": 2, "2x whole GPU": 1}


def test_no_more_whole_gpus_are_offered_than_the_label_says() -> None:
    view = view_of(a_node(whole=4, labels={COUNT: "2"}))
    assert (view.discovered.reason, view.gpus) == (Discovered.INCONSISTENT_LABELS, 2)
    assert "nvidia.com/gpu.count is 2 beside 4 whole GPUs" in view.discovered.message


def test_a_missing_label_does_not_make_the_dearest_pool_the_cheapest() -> None:
    nodes = (
        a_node("cheap", slices={"1g.10gb": 7}),
        without_label(a_node("dear", slices={"3g.40gb": 4}, partitioned=2), COUNT),
    )
    pools = (a_pool("cheap", "1.00"), a_pool("dear", "8.00"))
    placed = plan_of(a_snapshot(a_service(), pools=pools, nodes=nodes)).service_plans[CHAT]
    assert placed.choice is not None
    assert placed.choice.offer.pool == "cheap"


counts = st.integers(0, 9)
labels = st.none() | st.sampled_from(["", "0", "1", "2", "8", "x"])


@given(
    st.sampled_from([A100, "NVIDIA-H200", "NVIDIA-A30", "NVIDIA-B300-SXM6-AC"]),
    st.lists(counts, min_size=8, max_size=8),
    counts,
    labels,
)
def test_no_price_is_compared_below_the_billed_one(
    product: str, slices: list[int], whole: int, label: str | None
) -> None:
    gpu_model = find_gpu_model(product)
    assert gpu_model is not None
    resources = {
        f"nvidia.com/mig-{profile.name.replace('+', '.')}": count
        for profile, count in zip(gpu_model.profiles, slices, strict=False)
    }
    node = a_node(product=product, labels={} if label is None else {COUNT: label})
    node = replace(node, allocatable={**resources, GPU: whole})
    if label is None:
        node = without_label(node, COUNT)
    for offer in view_of(node).offers:
        assert offer.comparison_price.nanos >= offer.hourly.nanos
    weight = sum(
        (
            Decimal(count * profile.memory_slices) / gpu_model.memory_slices
            for profile, count in zip(gpu_model.profiles, slices, strict=False)
        ),
        Decimal(0),
    )
    assert gpus_in_mig_mode(gpu_model, [node]) >= weight


@pytest.mark.parametrize(
    ("node", "shared", "way"),
    [
        (a_node(whole=4, labels={PRODUCT: f"{A100}-SHARED", COUNT: "1"}), GPU, "time slicing"),
        (a_node(whole=4, labels=SHARED | {COUNT: "1"}), GPU, "time slicing"),
        (a_node(whole=4, labels={"nvidia.com/gpu.replicas": "4"}), GPU, "time slicing"),
        (
            a_node(whole=4, labels=SHARED | {"nvidia.com/gpu.sharing-strategy": "mps"}),
            GPU,
            "MPS",
        ),
        (
            with_devices(a_node(labels={COUNT: "1"}), **{"gpu": 0, "gpu.shared": 50}),
            f"{GPU}.shared",
            "time slicing",
        ),
        # A kubelet that offers too many devices is read as one without any.
        (a_node(labels={"nvidia.com/gpu.replicas": "16384", COUNT: "8"}), GPU, "time slicing"),
        (
            a_node(slices={"1g.10gb": 28}, labels={"nvidia.com/mig-1g.10gb.replicas": "4"}),
            "nvidia.com/mig-1g.10gb",
            "time slicing",
        ),
        (
            a_node(slices={"1g.10gb.shared": 28, "1g.10gb": 0}),
            "nvidia.com/mig-1g.10gb.shared",
            "time slicing",
        ),
    ],
)
def test_shared_gpus_are_not_offered_and_the_pool_says_how_to_end_it(
    node: Node, shared: str, way: str
) -> None:
    assert shared_resources(node) == {shared: way}
    view = view_of(node)
    assert (view.discovered.reason, offered(view)) == (Discovered.SHARED_GPUS, {})
    assert view.discovered.message.startswith(f"{way} is on at Node/a100-0, so each {shared} is")
    assert "Turn it off there: remove `sharing`" in view.discovered.message
    # The service without any other pool says it too.
    plan = plan_of(a_snapshot(a_service(), pools=(a_pool(),), nodes=(node,)))
    assert f"{way} is on" in plan.service_plans[CHAT].placement.verdict.message


def test_gpus_are_offered_once_sharing_is_off() -> None:
    off = {"nvidia.com/gpu.replicas": "1", "nvidia.com/gpu.sharing-strategy": "none"}
    view = view_of(a_node(whole=1, labels=off))
    assert (view.discovered.reason, offered(view)) == (Discovered.DEVICES_FOUND, {"whole GPU": 1})


@pytest.mark.usefixtures("shipped_catalog")
def test_shared_gpus_that_were_added_to_the_catalog_do_not_count_as_gpus() -> None:
    name = f"{A100}-SHARED"
    entry = Product.model_validate({**products()[A100].model_dump(), "product": name})
    catalog.set(replace(catalog(), products={**products(), name: entry}))
    view = view_of(a_node(whole=4, labels={PRODUCT: name, COUNT: "1"}))
    assert (view.discovered.reason, offered(view)) == (Discovered.SHARED_GPUS, {})


def test_nodes_that_share_their_gpus_leave_the_pool_those_of_the_others() -> None:
    shared = a_node(whole=4, name="a100-1", labels={PRODUCT: f"{A100}-SHARED", COUNT: "1"})
    view = view_of(a_node(whole=1), shared)
    assert (view.discovered.reason, view.gpus) == (Discovered.DEVICES_SET_ASIDE, 1)
    assert view.discovered.message.startswith("2 nodes with 1 GPU; ")
    assert "time slicing is on at Node/a100-1" in view.discovered.message


@pytest.mark.parametrize(
    ("product", "slices", "says"),
    [
        (A100, {"7g.79gb": 1}, "1x 7g.79gb not offered, since the size of such a slice"),
        ("NVIDIA-B300-SXM6-AC", {"1g.34gb": 7}, "use these GPUs without MIG mode"),
        ("NVIDIA-GH200-480GB", {"1g.24gb": 4}, "4x 1g.24gb not offered"),
        ("NVIDIA-H20", {"1g.12gb": 7}, "7x 1g.12gb not offered"),
        (A100, {"1g.10gb.me": 1}, "make slices of 1g.10gb, 1g.20gb, 2g.20gb"),
    ],
)
def test_profiles_without_an_offer_are_named_with_what_is_offered(
    product: str, slices: Mapping[str, int], says: str
) -> None:
    view = view_of(a_node(slices=slices, product=product))
    assert (view.discovered.reason, offered(view)) == (Discovered.UNKNOWN_PROFILES, {})
    assert says in view.discovered.message


def test_the_gpus_of_such_profiles_are_offered_without_mig_mode() -> None:
    for product in ("NVIDIA-B300-SXM6-AC", "NVIDIA-GH200-480GB", "NVIDIA-H20"):
        assert offered(view_of(a_node(whole=1, product=product))) == {"whole GPU": 1}


def test_a_slice_with_media_engines_is_named_beside_those_that_are_offered() -> None:
    view = view_of(a_node(slices={"1g.10gb": 6, "1g.10gb.me": 1}))
    assert offered(view) == {"1g.10gb": 6}
    assert view.discovered.reason == Discovered.DEVICES_SET_ASIDE
    assert "; 1x 1g.10gb+me not offered" in view.discovered.message


@pytest.mark.parametrize(("label", "mib"), [("40000", 40_000), ("90000", None), ("0", None)])
def test_of_the_memory_in_label_and_table_the_smaller_counts(label: str, mib: int | None) -> None:
    (offer,) = view_of(a_node(whole=1, labels={"nvidia.com/gpu.memory": label})).offers
    assert offer.hardware.memory_mib == (mib or products()[A100].memory_mib)
