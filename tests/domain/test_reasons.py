"""Every reason that refuses has a manifest that shows it, with a message that helps.

A message helps when it holds the path of the field and a number or a command.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera.adapters.kube import object_parsing as wire
from tessera.api.pool_reasons import Discovered, LayoutReady, PoolAccepted
from tessera.api.reasons import Accepted, PlacementReason
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.status.pool import pool_status
from tessera.domain.status.service import service_status
from tests.builders import A100, H100, NOW, a_node, a_snapshot, a_workload, plan_of, readings_of
from tests.domain.refused_services import SERVICES, RefusalCase


def pool_manifest(body: str, name: str = "a100") -> str:
    return f"""
apiVersion: tessera.dev/v1alpha1
kind: AcceleratorPool
metadata: {{name: {name}, uid: uid-{name}}}
spec:
{body}
"""


TOMORROW = f"{date(2026, 11, 21)}"
LABELS = "  nodeSelector: {pool: a100}\n"
PRICES = "  prices: [{from: 2026-01-01, perGPUHour: '1.60'}]\n"

POOLS = [
    RefusalCase(
        reason=PoolAccepted.INVALID_SPEC,
        manifest=pool_manifest("  nodeSelector: {pool: a100}\n  prices: [{from: never}]"),
        field="spec.prices.0.from",
        says=("kubectl explain",),
    ),
    RefusalCase(
        reason=PoolAccepted.PRICE_NOT_YET_EFFECTIVE,
        manifest=pool_manifest(LABELS + f"  prices: [{{from: {TOMORROW}, perGPUHour: '1'}}]"),
        field="spec.prices",
        says=(TOMORROW, "2026-11-20"),
    ),
    RefusalCase(
        reason=PoolAccepted.OVERLAPPING,
        manifest=pool_manifest(LABELS + PRICES, "zone-b"),
        field="spec.nodeSelector",
        says=("only nodes of other pools", "a100-0 of AcceleratorPool/a100"),
    ),
    RefusalCase(
        reason=Discovered.NOT_ACCEPTED,
        manifest=pool_manifest(LABELS + f"  prices: [{{from: {TOMORROW}, perGPUHour: '1'}}]"),
        field="Accepted",
        says=("Accepted is False", "PriceNotYetEffective"),
    ),
    RefusalCase(
        reason=Discovered.NO_NODES,
        manifest=pool_manifest("  nodeSelector: {pool: b200}\n" + PRICES, "b200"),
        field="spec.nodeSelector",
        says=("kubectl get nodes -l pool=b200",),
    ),
    RefusalCase(
        reason=Discovered.NO_DEVICES,
        manifest=pool_manifest(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("1 node without an allocatable GPU", "kubectl get nodes"),
        nodes=(a_node(),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.NO_DEVICES,
        manifest=pool_manifest(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("1 node without the label nvidia.com/gpu.product", "GPU feature discovery runs"),
        nodes=(replace(a_node(), labels={"pool": "a100"}, allocatable={"nvidia.com/gpu": 8}),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.NODES_SET_ASIDE,
        manifest=pool_manifest(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("1 node set aside", f"a100-1 is {H100}"),
        nodes=(a_node(whole=1), a_node(whole=1, product=H100, name="a100-1")),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.UNKNOWN_PRODUCT,
        manifest=pool_manifest(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "mig.strategy=mixed"),
        nodes=(a_node(whole=7, product=f"{A100}-MIG-1g.10gb"),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.UNKNOWN_PRODUCT,
        manifest=pool_manifest(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("its slices are not all alike, as mig.strategy=single needs", "mig.strategy=mixed"),
        nodes=(a_node(product=f"{A100}-MIG-INVALID"),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.UNKNOWN_PROFILES,
        manifest=pool_manifest(LABELS + PRICES),
        field=A100,
        says=("1x 7g.79gb not offered", "7g.80gb instead"),
        nodes=(a_node(slices={"7g.79gb": 1}),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.DEVICES_SET_ASIDE,
        manifest=pool_manifest(LABELS + PRICES),
        field=A100,
        says=("1x 1g.10gb+me not offered",),
        nodes=(a_node(slices={"1g.10gb": 6, "1g.10gb.me": 1}),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.INCONSISTENT_LABELS,
        manifest=pool_manifest(LABELS + PRICES),
        field="nvidia.com/gpu.count",
        says=("is 1 beside 1 whole GPU and slices of 1 GPU", "restart GPU feature discovery"),
        nodes=(a_node(whole=1, slices={"1g.10gb": 7}, labels={"nvidia.com/gpu.count": "1"}),),
        pools=(),
    ),
    RefusalCase(
        reason=Discovered.SHARED_GPUS,
        manifest=pool_manifest(LABELS + PRICES),
        field="Node/a100-0",
        says=("time slicing is on", "devicePlugin.config"),
        nodes=(a_node(whole=4, product=f"{A100}-SHARED"),),
        pools=(),
    ),
]

MIG = LABELS + PRICES + "  mig: {mode: Static, layout: {3g.40gb: 2}}"
POOLS += [
    RefusalCase(
        reason=LayoutReady.INCONSISTENT_LABELS,
        manifest=pool_manifest(MIG),
        field="a100-0",
        says=("1 A100-80GB GPU cannot be partitioned into 3x 3g.40gb",),
        nodes=(a_node(slices={"3g.40gb": 3}),),
        pools=(),
    ),
    RefusalCase(
        reason=PoolAccepted.INVALID_LAYOUT,
        manifest=pool_manifest(LABELS + PRICES + "  mig: {mode: Static, layout: {3g.40gb: 3}}"),
        field="spec.mig.layout",
        says=("3 x 3g.40gb does not fit on 1 A100-80GB", "lower the counts"),
        pools=(),
    ),
    RefusalCase(
        reason=PoolAccepted.INVALID_NODE_TEMPLATE,
        manifest=pool_manifest(
            LABELS + PRICES + "  nodeTemplate: {product: NVIDIA-H100-NVL, gpus: 8, maxNodes: 4}"
        ),
        field="spec.nodeTemplate.product",
        says=("NVIDIA-H100-NVL", "have NVIDIA-A100-SXM4-80GB", "a pool of their own"),
        pools=(),
    ),
    RefusalCase(
        reason=LayoutReady.UNKNOWN_PROFILE,
        manifest=pool_manifest(LABELS + PRICES + "  mig: {mode: Static, layout: {3g.71gb: 2}}"),
        field="spec.mig.layout",
        says=("3g.71gb", "3g.40gb"),
        pools=(),
    ),
]


def fleet(case: RefusalCase, **fields: Any) -> Snapshot:
    workloads = tuple(a_workload(2) for _ in case.pods[:1])
    return a_snapshot(
        pools=case.pools,
        nodes=case.nodes,
        pods=case.pods,
        workloads=workloads,
        readings=readings_of(case.pods),
        **fields,
    )


def is_helpful(message: str) -> bool:
    return bool(re.search(r"\d|kubectl \w+", message))


def service_messages(case: RefusalCase) -> dict[str, str]:
    """The messages of a refused service, by reason."""
    service = wire.parse_own(INFERENCE_SERVICES, yaml.safe_load(case.manifest))
    assert service is not None
    snapshot = fleet(case)
    snapshot = a_snapshot(
        service,
        **{name: getattr(snapshot, name) for name in ("pools", "nodes", "pods", "workloads")},
        budgets=case.budgets,
    )
    status = service_status(snapshot, plan_of(snapshot).service_plans[service.ref], None, None)
    return {condition.reason: condition.message for condition in status.conditions}


@pytest.mark.parametrize("case", SERVICES, ids=lambda case: case.reason)
def test_a_refused_service_says_where_and_what_to_do(case: RefusalCase) -> None:
    _assert_message(case, service_messages(case))


def pool_messages(case: RefusalCase) -> dict[str, str]:
    """The messages of a refused pool, by reason."""
    pool = wire.parse_own(ACCELERATOR_POOLS, yaml.safe_load(case.manifest))
    others = tuple(other for other in case.pools if other.name != pool.name)
    snapshot = a_snapshot(pools=(pool, *others), nodes=case.nodes)
    decided = plan_of(snapshot)
    view = next(view for view in decided.pools if view.pool.name == pool.name)
    status = pool_status(view, decided.repartitions.actions.get(pool.name), NOW)
    return {condition.reason: condition.message for condition in status.conditions}


@pytest.mark.parametrize("case", POOLS, ids=lambda case: case.reason)
def test_a_refused_pool_says_where_and_what_to_do(case: RefusalCase) -> None:
    _assert_message(case, pool_messages(case))


def test_all_messages_of_refusals_read_well_together(golden: Callable[..., None]) -> None:
    """Whole sentences are pinned in this one file, for a reader."""
    services = [{str(case.reason): service_messages(case)[case.reason]} for case in SERVICES]
    pools = [{str(case.reason): pool_messages(case)[case.reason]} for case in POOLS]
    golden("messages", [{"services": services, "pools": pools}])


def _assert_message(case: RefusalCase, messages: dict[str, str]) -> None:
    assert case.reason in messages, messages
    message = messages[case.reason]
    assert case.field in message
    for part in case.says:
        assert part in message
    if case.field.startswith("spec"):
        assert is_helpful(message)


def test_every_reason_that_refuses_has_a_case() -> None:
    shown = {case.reason for case in (*SERVICES, *POOLS)}
    kinds = (Accepted, PlacementReason, PoolAccepted, Discovered)
    refusing = {reason for kind in kinds for reason in kind if not reason.is_true}
    # Shown by tests of their own: no manifest alone makes them.
    assert refusing - shown == {
        Accepted.FAILED_CREATE,
        Accepted.PLANNER_ERROR,
        Accepted.REVISION_MISSING,
        Accepted.UNKNOWN_MODEL,
    }


def test_every_reason_why_gpus_are_not_as_planned_is_named_by_a_test() -> None:
    """Most need a rollout or a backend that goes wrong, which no manifest alone makes."""
    tests = Path(__file__).parent.parent
    text = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("*.py"))
    assert [reason for reason in LayoutReady if f"LayoutReady.{reason.name}" not in text] == []
