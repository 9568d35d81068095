"""Nodes that do not exist yet: what a pool offers by `spec.nodeTemplate`, and what waits for it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.meta import find_condition
from tessera.api.pool_reasons import Discovered, PoolAccepted
from tessera.api.reasons import PlacementReason, ScalingReason
from tessera.api.service_status import InferenceServiceStatus, RolloutFloorStatus
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.observed.snapshot import Node, Pool, Ref
from tessera.domain.placement.candidates import free_replicas
from tessera.domain.placement.free_hardware import replicas_free_now
from tessera.domain.scaling.state import ScalingHistory, TimestampedReplicas
from tessera.domain.status.service import service_status
from tessera.resources.children import service_manifests
from tests.builders import (
    A100,
    H100,
    NO_MEMORY,
    NOW,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    compute_service_plan,
    plan_of,
    readings_of,
)

TEMPLATE: dict[str, Any] = {"product": A100, "gpus": 8, "maxNodes": 4}
WHOLE = {"nvidia.com/gpu": 1}
CHAT = Ref("team-a", "chat")
TAINT = {"key": "dedicated", "value": "llm", "effect": "NoSchedule"}


def a_scalable_pool(
    name: str = "a100", *, spec: dict[str, Any] | None = None, **fields: Any
) -> Pool:
    return a_pool(name, **(spec or {}), nodeTemplate={**TEMPLATE, **fields})


def view_of(pool: Pool, *nodes: Node) -> PoolView:
    (view,) = discover((pool,), nodes, NOW.date())
    return view


def offered(view: PoolView) -> dict[str, tuple[int, int]]:
    """Return the replicas by hardware, and those of them on nodes that do not exist."""
    return {
        offer.hardware.name: (offer.replicas, offer.startable_replicas) for offer in view.offers
    }


def test_a_service_on_a_pool_without_nodes_gets_pods_that_an_autoscaler_can_place() -> None:
    pool = a_scalable_pool(
        taints=[TAINT, {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    )
    service_plan = compute_service_plan(a_snapshot(a_service(), pools=(pool,), nodes=()))
    assert service_plan.placement.verdict.reason == PlacementReason.PLACED
    manifests = service_manifests(service_plan)
    (deployment,) = [each.body for each in manifests if each.body["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 2
    pod = deployment["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert [each["key"] for each in pod["tolerations"]].count("nvidia.com/gpu") == 1
    assert {
        "key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule",
    } in pod["tolerations"]  # fmt: skip


def test_a_pool_offers_the_nodes_that_it_may_have_beside_those_that_it_has() -> None:
    node = a_node(whole=8)
    view = view_of(a_scalable_pool(), node)
    assert offered(view)["whole GPU"] == (32, 24)
    assert offered(view)["8x whole GPU"] == (4, 3)
    assert view.discovered.message == "1 node with 8 GPUs; 1 of 4 nodes exist, expected start 300s"
    assert offered(view_of(a_scalable_pool(maxNodes=1), node))["whole GPU"] == (8, 0)


def test_what_is_free_now_is_on_nodes_that_exist() -> None:
    pool, node = a_scalable_pool(), a_node(whole=8)
    snapshot = a_snapshot(
        pools=(pool,), nodes=(node,), pods=(a_pod(node=node.name, devices=WHOLE, bound=NOW),)
    )
    view = view_of(pool, node)
    offer = next(each for each in view.offers if each.hardware.name == "whole GPU")
    assert replicas_free_now(snapshot, view, offer) == 7
    assert free_replicas(offer, {("a100", "nvidia.com/gpu"): 1}) == 31


def test_a_node_that_offers_no_device_yet_is_still_to_come() -> None:
    started = a_node(name="new")
    silent = replace(started, labels={"pool": "a100"}, allocatable={})
    for node in (started, silent):
        view = view_of(a_scalable_pool(), node)
        assert offered(view)["whole GPU"] == (32, 32)
        assert view.discovered.reason == Discovered.NODES_ON_DEMAND


@pytest.mark.parametrize("field", ["migLayout", "layout of the pool"])
def test_slices_of_new_nodes_are_offered_as_they_will_be(field: str) -> None:
    layout = {"3g.40gb": 2}
    if field == "migLayout":
        view = view_of(a_scalable_pool(migLayout=layout))
    else:
        view = view_of(a_scalable_pool(spec={"mig": {"mode": "Static", "layout": layout}}))
    assert offered(view) == {"3g.40gb": (64, 64)}
    assert not any(offer.needs_repartition for offer in view.offers)


def test_slices_of_new_nodes_have_the_names_that_nodes_give_them() -> None:
    pool = a_scalable_pool(migLayout={"3g.40gb": 2})
    (offer,) = view_of(pool, a_node(slices={"3g.39gb": 2})).offers
    assert (offer.hardware.resource, offer.replicas) == ("nvidia.com/mig-3g.39gb", 2 + 3 * 16)


@pytest.mark.parametrize(
    ("fields", "nodes", "words"),
    [
        ({"product": "NVIDIA-A100"}, (), "spec.nodeTemplate.product: NVIDIA-A100 is none of the"),
        ({"product": H100}, (a_node(whole=8),), f"but the nodes of the pool have {A100}"),
        (
            {"migLayout": {"3g.40gb": 3}},
            (),
            "spec.nodeTemplate.migLayout: 3 x 3g.40gb does not fit",
        ),
        ({"migLayout": {"3g.80gb": 1}}, (), "has no profile 3g.80gb"),
        ({"migLayout": {"1g.10gb+me": 1}}, (), "the size of no slice is known"),
        ({"product": "NVIDIA-L4", "migLayout": {"1g.10gb": 1}}, (), "NVIDIA-L4 has no MIG"),
    ],
)
def test_a_template_that_cannot_be_offers_nothing_and_existing_nodes_stay(
    fields: dict[str, Any], nodes: tuple[Node, ...], words: str
) -> None:
    view = view_of(a_scalable_pool(**fields), *nodes)
    assert view.accepted.reason == PoolAccepted.INVALID_NODE_TEMPLATE
    assert words in view.accepted.message
    assert view.startable is None
    assert offered(view).get("whole GPU") == ((8, 0) if nodes else None)
    if not nodes:
        assert words in view.discovered.message


def test_a_template_whose_nodes_an_older_pool_would_get_offers_none() -> None:
    older = replace(a_pool("any", nodeSelector={"nvidia.com/gpu.product": A100}), created=NOW)
    newer = replace(a_scalable_pool(), created=at(60))
    views = {view.pool.name: view for view in discover((newer, older), (), NOW.date())}
    assert views["a100"].accepted.reason == PoolAccepted.INVALID_NODE_TEMPLATE
    assert "AcceleratorPool/any, which is older" in views["a100"].accepted.message
    views = {
        view.pool.name: view
        for view in discover((replace(newer, created=at(-60)), older), (), NOW.date())
    }
    assert views["a100"].startable is not None


def test_the_template_decides_between_products_and_reality_decides_against_it() -> None:
    pool = a_scalable_pool()
    others = [a_node(product=H100, whole=8, name=f"other-{number}") for number in range(2)]
    assert view_of(pool, *others, a_node(whole=8)).product == A100
    assert view_of(pool, *others).product == H100


def test_replicas_that_wait_for_nodes_say_so_and_further_ones_are_added() -> None:
    spec = a_spec(scaling={"minReplicas": 1, "maxReplicas": 4})
    variant = "a100-1gpu"
    running = a_pod(variant=variant, node="a100-0", devices=WHOLE, bound=at(-60))
    waiting = a_pod(
        "chat-1", variant=variant, ready_since=None, unschedulable="1 node without enough free GPU"
    )
    snapshot = a_snapshot(
        a_service(spec=spec),
        pools=(a_scalable_pool(gpus=1),),
        nodes=(a_node(whole=1),),
        workloads=(a_workload(2, variant=variant),),
        pods=(running, waiting),
        readings=readings_of((running,), waiting=500.0, running=10.0),
    )
    history = ScalingHistory(
        decisions=(TimestampedReplicas(at(-600), 2),), refused=TimestampedReplicas(at(-30), 1)
    )
    plan = plan_of(snapshot, memory=replace(NO_MEMORY, scaling_history={CHAT: history}))
    service_plan = plan.service_plans[CHAT]
    assert service_plan.scale.reason != ScalingReason.UNSCHEDULABLE
    assert service_plan.scale.replicas > 2
    placed = find_condition(service_status(snapshot, service_plan, None, None).conditions, "Placed")
    assert placed is not None
    assert (placed.status, placed.reason) == ("True", PlacementReason.NODES_STARTING)
    assert "1 of 4 nodes exist, expected start 300s" in placed.message


def test_a_rollout_starts_no_node() -> None:
    variant = "a100-1gpu"
    pods = (a_pod(variant=variant, node="a100-0", devices=WHOLE, bound=at(-60)),)
    snapshot = a_snapshot(
        a_service(spec=a_spec(scaling={"minReplicas": 1})),
        pools=(a_scalable_pool(gpus=1),),
        nodes=(a_node(whole=1),),
        workloads=(a_workload(1, variant=variant),),
        pods=pods,
    )
    assert not compute_service_plan(snapshot).variants[0].surge
    roomy = replace(snapshot, nodes=(a_node(whole=2),))
    assert compute_service_plan(roomy).variants[0].surge


def test_what_runs_elsewhere_stays_while_its_successor_waits_for_a_node() -> None:
    previous, variant = "a100-2gpu-fp8", "a100-1gpu"
    waiting = a_pod("chat-1", variant=variant, ready_since=None, unschedulable="no node")
    running = a_pod(variant=previous, node="a100-0", devices={"nvidia.com/gpu": 2}, bound=at(-60))
    status = InferenceServiceStatus(rollout_floor=RolloutFloorStatus(replicas=1))
    snapshot = a_snapshot(
        a_service(status=status, spec=a_spec(scaling={"minReplicas": 1})),
        pools=(a_scalable_pool(gpus=2),),
        nodes=(a_node(whole=2),),
        workloads=(a_workload(1, variant=variant), a_workload(1, variant=previous)),
        pods=(running, waiting),
    )
    waits = compute_service_plan(snapshot)
    assert (waits.removable_deployments, waits.drain.draining) == ((), ())
    bare = compute_service_plan(replace(snapshot, pools=(a_pool(),)))
    assert (bare.removable_deployments, bare.drain.draining) == ((), (running.ref,))


def test_the_expected_start_is_within_bounds() -> None:
    pool = a_scalable_pool(expectedStart="90s")
    view = view_of(pool)
    assert view.startable is not None
    assert view.startable.expected_start == timedelta(seconds=90)
    for text in ("9s", "61m"):
        with pytest.raises(ValueError, match="must be at"):
            a_scalable_pool(expectedStart=text)
