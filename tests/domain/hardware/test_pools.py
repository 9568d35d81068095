"""Which nodes a pool uses, what a pod there costs, and who may use the pool."""

from dataclasses import replace
from decimal import Decimal

import pytest

from tessera.api.pool_reasons import Discovered, PoolAccepted
from tessera.api.reasons import PlacementReason
from tessera.domain.hardware.pools import PoolView, discover, pools_by_node, tariff_of
from tessera.domain.observed.snapshot import Node, Pool, Ref
from tessera.domain.placement.placement import place
from tessera.domain.status.pool import pool_status
from tests.builders import (
    A100,
    H100,
    NOW,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)

SLICE = {"nvidia.com/mig-1g.10gb": 1}
CHAT = Ref("team-a", "chat")
NODES = (a_node(slices={"1g.10gb": 7}), a_node(slices={"1g.10gb": 7}, name="a100-1"))


def views_of(pools: tuple[Pool, ...], nodes: tuple[Node, ...]) -> dict[str, PoolView]:
    return {view.pool.name: view for view in discover(pools, nodes, NOW.date())}


def test_an_established_pool_keeps_its_nodes_from_a_newcomer_with_an_earlier_name() -> None:
    established = replace(a_pool(), created=NOW)
    newcomer = replace(a_pool("a", "9.50", nodeSelector={"pool": "a100"}), created=at(60))
    snapshot = a_snapshot(
        a_service(),
        pools=(newcomer, established),
        workloads=(a_workload(2),),
        pods=(a_pod(node="a100-0", devices=SLICE, bound=NOW),),
    )
    decision = plan_of(snapshot)
    views = {view.pool.name: view for view in decision.pools}
    assert views["a"].accepted.reason == PoolAccepted.OVERLAPPING
    assert views["a100"].discovered.reason == Discovered.DEVICES_FOUND
    choice = decision.service_plans[CHAT].choice
    assert choice is not None
    assert choice.offer.pool == "a100"
    assert pools_by_node(decision.pools)["a100-0"].pool.name == "a100"
    status = pool_status(views["a"], None, NOW)
    messages = {condition.type: condition.message for condition in status.conditions}
    assert "Overlapping" in messages["Discovered"]
    assert "a100-0 of AcceleratorPool/a100" in messages["Discovered"]


@pytest.mark.parametrize(
    ("odd", "slices"),
    [(H100, {"1g.10gb": 7}), ("NVIDIA-Z900", {"1g.10gb": 7}), ("NVIDIA-H200", {"1g.18gb": 7})],
)
def test_a_node_of_another_product_is_set_aside_and_the_pool_goes_on(
    odd: str, slices: dict[str, int]
) -> None:
    view = views_of((a_pool(),), (*NODES, a_node(slices=slices, product=odd, name="odd")))["a100"]
    assert (view.product, view.nodes, view.slices) == (A100, 2, (("1g.10gb", 14),))
    assert view.discovered.reason == Discovered.NODES_SET_ASIDE
    assert f"1 node set aside: odd is {odd}" in view.discovered.message
    profile = next(iter(slices))
    tariff = tariff_of(pools_by_node([view])["odd"], {f"nvidia.com/mig-{profile}": 1})
    assert tariff is not None
    assert tariff.hourly(NOW.date()).nanos > 0


def test_the_product_of_a_pool_stays_while_a_node_has_it() -> None:
    pool = a_pool()
    known = replace(pool, status=pool.status.model_copy(update={"product": A100}))
    nodes = [a_node(slices={"1g.10gb": 7}, product=H100, name=f"h-{index}") for index in range(3)]
    assert views_of((known,), (*nodes, NODES[0]))["a100"].product == A100
    assert views_of((pool,), (*nodes, NODES[0]))["a100"].product == H100
    assert views_of((known,), tuple(nodes))["a100"].product == H100


def test_one_node_with_the_label_of_another_pool_takes_no_pool_out() -> None:
    pools = (replace(a_pool("a000", nodeSelector={"old": "yes"}), created=NOW), a_pool())
    shared = a_node(slices={"1g.10gb": 7}, name="shared", labels={"old": "yes"})
    views = views_of(pools, (*NODES, shared))
    assert views["a100"].node_names == {"a100-0", "a100-1"}
    assert views["a100"].discovered.reason == Discovered.NODES_SET_ASIDE
    assert "shared of AcceleratorPool/a000" in views["a100"].discovered.message
    assert views["a000"].node_names == {"shared"}


@pytest.mark.parametrize("younger", [True, False])
@pytest.mark.parametrize("home", ["a100", "none"])
@pytest.mark.parametrize("product", [A100, H100])
def test_a_node_that_lies_puts_no_pool_out_that_has_none_yet(
    product: str, home: str, *, younger: bool
) -> None:
    template = {"product": A100, "gpus": 8, "maxNodes": 4}
    pool = a_pool("burst", nodeSelector={"burst": "yes"}, nodeTemplate=template)
    status = pool.status.model_copy(update={"product": A100})
    burst = replace(pool, created=at(60 if younger else -60), status=status)
    liar = a_node(home, whole=8, product=product, name="liar", labels={"burst": "yes"})
    views = views_of((replace(a_pool(), created=NOW), burst), (*NODES, liar))
    assert {view.accepted.reason for view in views.values()} == {PoolAccepted.VALID}
    assert any(offer.startable_replicas for offer in views["burst"].offers)
    set_aside = [view for view in views.values() if "liar" in view.discovered.message]
    assert set_aside or "liar" in views["burst"].node_names
    assert views["a100"].node_names >= {"a100-0", "a100-1"}


def test_a_pool_whose_selector_an_older_one_covers_is_refused_also_without_nodes() -> None:
    template = {"product": A100, "gpus": 8, "maxNodes": 4}
    older = replace(a_pool("wide", nodeSelector={"gpu": "yes"}), created=NOW)
    selector = {"gpu": "yes", "pool": "burst"}
    burst = a_pool("burst", nodeSelector=selector, nodeTemplate=template)
    burst = replace(burst, created=at(60))
    for nodes in ((), (a_node("burst", whole=8, labels={"gpu": "yes"}),)):
        view = views_of((older, burst), nodes)["burst"]
        assert not view.accepted.reason.is_true
        assert view.startable is None


def test_a_slice_that_no_product_has_costs_as_a_whole_gpu() -> None:
    view = views_of((a_pool(),), NODES)["a100"]
    tariff = tariff_of(view, {"nvidia.com/mig-9g.999gb": 1, "nvidia.com/hostdev": 4})
    assert tariff is not None
    assert tariff.weight == Decimal(1)


@pytest.mark.parametrize(
    ("namespaces", "reason"),
    [
        (None, PlacementReason.PLACED),
        (["team-b", "team-a"], PlacementReason.PLACED),
        (["team-b"], PlacementReason.POOL_NOT_ALLOWED),
        ([], PlacementReason.POOL_NOT_ALLOWED),
    ],
)
def test_a_pool_names_the_namespaces_that_may_use_it(
    namespaces: list[str] | None, reason: PlacementReason
) -> None:
    pool = a_pool(namespaces=namespaces)
    decision = place(
        a_spec(),
        discover((pool,), NODES, NOW.date()),
        namespace="team-a",
        current=None,
        min_replicas=2,
        used_devices={},
    )
    assert decision.verdict.reason == reason
    snapshot = a_snapshot(a_service(), pools=(pool,), nodes=NODES)
    service_plan = plan_of(snapshot).service_plans[CHAT]
    assert service_plan.placement.verdict.reason == reason
    assert service_plan.scale.replicas == (2 if reason.is_true else 0)


def test_a_service_moves_past_a_cheaper_pool_that_does_not_list_its_namespace() -> None:
    pools = (a_pool("a100", "1.00", namespaces=["team-b"]), a_pool("b100", "9.00"))
    nodes = (*NODES, a_node("b100", slices={"1g.10gb": 7}))
    choice = plan_of(a_snapshot(a_service(), pools=pools, nodes=nodes)).service_plans[CHAT].choice
    assert choice is not None
    assert choice.offer.pool == "b100"


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (
            {"1g.10gb": 7, "7g.80gb": 1},
            "7 x 1g.10gb, 1 x 7g.80gb does not fit on 1 A100-80GB; lower the counts",
        ),
        ({"3g.71gb": 1}, "A100-80GB has no profile 3g.71gb; it has 1g.10gb"),
    ],
)
def test_a_layout_that_no_gpu_can_have_is_not_accepted_and_what_runs_goes_on(
    layout: dict[str, int], says: str
) -> None:
    """Also while another plan is under way, about which LayoutReady speaks."""
    pool = a_pool(mig={"mode": "Static", "layout": layout})
    view = views_of((pool,), NODES)["a100"]
    assert view.accepted.reason is PoolAccepted.INVALID_LAYOUT
    assert says in view.accepted.message
    assert (view.discovered.reason, bool(view.offers)) == (Discovered.DEVICES_FOUND, True)
