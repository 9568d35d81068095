"""Every reason that refuses has a manifest that shows it, with a message that helps.

A message helps when it holds the path of the field and a number or a command.
"""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera.adapters import object_parsing as wire
from tessera.api.reasons import (
    Accepted,
    Discovered,
    LayoutReady,
    PlacementReason,
    PoolAccepted,
    StatusReason,
)
from tessera.domain.observed.snapshot import Node, Pod, Pool, Snapshot
from tessera.domain.plan import plan
from tessera.domain.status.service import pool_status, service_status
from tests.builders import (
    A100,
    H100,
    NOW,
    a_node,
    a_pod,
    a_pool,
    a_snapshot,
    a_workload,
    readings_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A manifest, the fleet that it meets, and what its condition must say."""

    reason: StatusReason
    manifest: str
    field: str
    says: tuple[str, ...]
    pools: tuple[Pool, ...] = (a_pool(),)
    nodes: tuple[Node, ...] = (a_node(slices={"1g.10gb": 7}),)
    pods: tuple[Pod, ...] = ()


def served(body: str) -> str:
    return f"""
apiVersion: tessera.dev/v1alpha1
kind: InferenceService
metadata: {{name: chat, namespace: team-a, uid: uid-chat}}
spec:
{body}
"""


def pooled(body: str, name: str = "a100") -> str:
    return f"""
apiVersion: tessera.dev/v1alpha1
kind: AcceleratorPool
metadata: {{name: {name}, uid: uid-{name}}}
spec:
{body}
"""


SERVICES = [
    Case(
        reason=Accepted.INVALID_SPEC,
        manifest=served("  model: {uri: 'ftp://somewhere'}"),
        field="spec.model.uri",
        says=("hf://", "kubectl explain"),
    ),
    Case(
        reason=Accepted.READING_MODEL,
        manifest=served("  model: {uri: 'hf://acme/own-model'}"),
        field="spec.model.shape",
        says=("hf://acme/own-model", "kubectl logs -n team-a job/chat-shape-"),
    ),
    Case(
        reason=Accepted.CONTEXT_TOO_LONG,
        manifest=served("  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  context: {maxModelLen: 65536}"),
        field="spec.context.maxModelLen",
        says=("65536", "40960"),
    ),
    Case(
        reason=Accepted.PRECISION_MISMATCH,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B-FP8'}\n  precision: {variants: [{precision: fp8}]}"
        ),
        field="spec.precision.variants[0].precision",
        says=("quantised to fp8 already", "leave fp8 out"),
    ),
    Case(
        reason=Accepted.ADAPTER_NAME_CONFLICT,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B', servedName: sql,"
            " adapters: [{name: sql, uri: 'hf://acme/sql'}]}"
        ),
        field="spec.model.adapters[0].name",
        says=("sql", "spec.model.servedName", "rename"),
    ),
    Case(
        reason=Accepted.RESERVED_POD_TEMPLATE_FIELD,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B'}\n"
            "  podTemplate: {labels: {tessera.dev/service: other}}"
        ),
        field="spec.podTemplate.labels",
        says=("tessera.dev/service", "set by Tessera"),
    ),
    Case(
        reason=Accepted.INVALID_POD_TEMPLATE,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  podTemplate: {labels: {'my key': a}}"
        ),
        field="spec.podTemplate.labels",
        says=("'my key'", "63 letters"),
    ),
    Case(
        reason=Accepted.RESERVED_FLAG,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  engine: {extraArgs: ['--max-model-len=100']}"
        ),
        field="spec.engine.extraArgs",
        says=("--max-model-len", "spec.context.maxModelLen"),
    ),
    Case(
        reason=Accepted.INVALID_FLAG,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  engine: {extraArgs: ['--max-logprobs=x']}"
        ),
        field="spec.engine.extraArgs",
        says=("--max-logprobs", "0.32.0"),
    ),
    Case(
        reason=Accepted.FLAGS_UNCHECKED,
        manifest=served(
            "  model: {uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}\n"
            "  engine: {version: 0.99.0, extraArgs: ['--anything']}"
        ),
        field="spec.engine.extraArgs",
        says=("0.99.0", "0.32.0"),
    ),
    Case(
        reason=Accepted.POOL_NOT_FOUND,
        manifest=served("  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  placement: {pools: [a100, b200]}"),
        field="spec.placement.pools[1]",
        says=("b200", "kubectl get acceleratorpools"),
    ),
    Case(
        reason=Accepted.INTERACTIVE_ON_SPOT,
        manifest=served(
            "  model: {uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}\n"
            "  placement: {pools: [a100, spot]}"
        ),
        field="spec.placement.pools[1]",
        says=("spot is spot", "within 15 s", "spec.class"),
        pools=(a_pool(), a_pool("spot", tier="spot")),
    ),
    Case(
        reason=PlacementReason.NOT_ACCEPTED,
        manifest=served("  model: {uri: 'hf://acme/own-model'}"),
        field="Accepted",
        says=("nothing is placed",),
    ),
    Case(
        reason=PlacementReason.NO_POOL,
        manifest=served("  model: {uri: 'hf://Qwen/Qwen3-8B'}"),
        field="spec.placement.pools",
        says=("kubectl get acceleratorpools", "0"),
        pools=(),
    ),
    Case(
        reason=PlacementReason.NO_POOL,
        manifest=served(
            "  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  placement: {pools: [spot]}\n  class: standard"
        ),
        field="spec.placement.pools",
        says=("spot", "another tier"),
        pools=(a_pool("spot", tier="spot"),),
        nodes=(a_node("spot", {"3g.40gb": 2}),),
    ),
    Case(
        reason=PlacementReason.NO_HARDWARE,
        manifest=served("  model: {uri: 'hf://Qwen/Qwen3-8B'}"),
        field="spec.placement.pools",
        says=("a100", "kubectl get nodes -l pool=a100"),
        nodes=(),
    ),
    Case(
        reason=PlacementReason.LAYOUT_PENDING,
        manifest=served("  model: {uri: 'hf://Qwen/Qwen3-8B'}\n  placement: {mig: auto}"),
        field="a100",
        says=("a100",),
        pools=(a_pool(mig={"mode": "auto"}),),
        nodes=(a_node(slices={"1g.10gb": 7}),),
    ),
    Case(
        reason=PlacementReason.MIXED_CURRENCIES,
        manifest=served("  model: {uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}"),
        field="spec.placement.pools",
        says=("2 currencies (EUR, USD)", "name pools of one"),
        pools=(
            a_pool(),
            a_pool(
                "h100",
                prices=[{"from": date(2026, 1, 1), "perGPUHour": "3", "currency": "EUR"}],
            ),
        ),
        nodes=(a_node(slices={"1g.10gb": 7}), a_node("h100", whole=1, product=H100)),
    ),
    Case(
        reason=PlacementReason.TOO_LARGE,
        manifest=served("  model: {uri: 'hf://meta-llama/Llama-3.1-70B-Instruct'}"),
        field="spec.model.uri",
        says=("9728 MiB", "devices of", "more whole GPUs", "fp8 in spec.precision.variants"),
    ),
    Case(
        reason=PlacementReason.TOO_LARGE,
        manifest=served("  model: {uri: 'hf://meta-llama/Llama-3.1-8B-Instruct'}"),
        field="spec.model.uri",
        says=("2g.20gb", "spec.context.maxModelLen of at most 7616"),
        nodes=(a_node(slices={"2g.20gb": 3}),),
    ),
    Case(
        reason=PlacementReason.TOO_SLOW,
        manifest=served(
            "  model: {uri: 'hf://meta-llama/Llama-3.1-8B-Instruct'}\n  slo: {interTokenP95: 10ms}"
        ),
        field="spec.slo.interTokenP95",
        says=("22.6 ms a token and 10 ms are promised", "faster pool"),
        nodes=(a_node(slices={"3g.40gb": 2}),),
    ),
    Case(
        reason=PlacementReason.TOO_SLOW,
        manifest=served(
            "  model: {uri: 'hf://meta-llama/Llama-3.1-8B-Instruct'}\n"
            "  context: {maxModelLen: 32768, typicalInputTokens: 30000}"
        ),
        field="spec.slo.ttftP95",
        says=("30000 tokens", "1000 ms are promised", "spec.context.typicalInputTokens"),
        nodes=(a_node(slices={"3g.40gb": 2}),),
    ),
    Case(
        reason=PlacementReason.LAYOUT_PENDING,
        manifest=served(
            "  model: {uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}\n  placement: {mig: auto}"
        ),
        field="spec.placement.mig",
        says=("a100", "6 forms", "kubectl get acceleratorpool"),
        pools=(a_pool(mig={"mode": "auto"}),),
    ),
    Case(
        reason=PlacementReason.UNSCHEDULABLE,
        manifest=served("  model: {uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}"),
        field="spec.placement.pools",
        says=("1 of 2 replicas", "1g.10gb in a100", "0/1 nodes are available"),
        pods=(
            a_pod("chat-0"),
            a_pod(
                "chat-1",
                ready_since=None,
                containers_ready=False,
                unschedulable="0/1 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb.",
            ),
        ),
    ),
]

TOMORROW = f"{date(2026, 11, 21)}"
LABELS = "  nodeSelector: {pool: a100}\n"
PRICES = "  prices: [{from: 2026-01-01, perGPUHour: '1.60'}]\n"

POOLS = [
    Case(
        reason=PoolAccepted.INVALID_SPEC,
        manifest=pooled("  nodeSelector: {pool: a100}\n  prices: [{from: never}]"),
        field="spec.prices.0.from",
        says=("kubectl explain",),
    ),
    Case(
        reason=PoolAccepted.PRICE_NOT_YET_EFFECTIVE,
        manifest=pooled(LABELS + f"  prices: [{{from: {TOMORROW}, perGPUHour: '1'}}]"),
        field="spec.prices",
        says=(TOMORROW, "2026-11-20"),
    ),
    Case(
        reason=PoolAccepted.OVERLAPPING,
        manifest=pooled(LABELS + PRICES, "zone-b"),
        field="spec.nodeSelector",
        says=("1 nodes of pool a100", "a100-0"),
    ),
    Case(
        reason=Discovered.NOT_ACCEPTED,
        manifest=pooled(LABELS + f"  prices: [{{from: {TOMORROW}, perGPUHour: '1'}}]"),
        field="Accepted",
        says=("nothing is discovered",),
    ),
    Case(
        reason=Discovered.NO_NODES,
        manifest=pooled("  nodeSelector: {pool: b200}\n" + PRICES, "b200"),
        field="spec.nodeSelector",
        says=("kubectl get nodes -l pool=b200",),
    ),
    Case(
        reason=Discovered.NO_DEVICES,
        manifest=pooled(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("1 nodes without a GPU", "kubectl get nodes"),
        nodes=(a_node(),),
        pools=(),
    ),
    Case(
        reason=Discovered.MIXED_PRODUCTS,
        manifest=pooled(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("2 products", A100, H100, "nvidia.com/gpu.product"),
        nodes=(a_node(whole=1), a_node(whole=1, product=H100, name="a100-1")),
        pools=(),
    ),
    Case(
        reason=Discovered.UNKNOWN_PRODUCT,
        manifest=pooled(LABELS + PRICES),
        field="spec.nodeSelector",
        says=("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "mig.strategy=mixed"),
        nodes=(a_node(whole=7, product=f"{A100}-MIG-1g.10gb"),),
        pools=(),
    ),
]

MIG = LABELS + PRICES + "  mig: {mode: static, layout: {3g.40gb: 2}}"
POOLS += [
    Case(
        reason=LayoutReady.INCONSISTENT_LABELS,
        manifest=pooled(MIG),
        field="a100-0",
        says=("1 GPUs A100-80GB cannot be cut into 3x 3g.40gb",),
        nodes=(a_node(slices={"3g.40gb": 3}),),
        pools=(),
    ),
    Case(
        reason=LayoutReady.UNKNOWN_PROFILE,
        manifest=pooled(LABELS + PRICES + "  mig: {mode: static, layout: {3g.71gb: 2}}"),
        field="spec.mig.layout",
        says=("3g.71gb", "3g.40gb"),
        pools=(),
    ),
]


def fleet(case: Case, **fields: Any) -> Snapshot:
    found = tuple(a_workload(2) for _ in case.pods[:1])
    return a_snapshot(
        pools=case.pools,
        nodes=case.nodes,
        pods=case.pods,
        workloads=found,
        readings=readings_of(case.pods),
        **fields,
    )


def helps(message: str) -> bool:
    return bool(re.search(r"\d|kubectl \w+", message))


@pytest.mark.parametrize("case", SERVICES, ids=lambda case: case.reason)
def test_a_refused_service_says_where_and_what_to_do(case: Case) -> None:
    service = wire.parse_service(yaml.safe_load(case.manifest))
    assert service is not None
    snapshot = fleet(case)
    snapshot = a_snapshot(
        service,
        **{name: getattr(snapshot, name) for name in ("pools", "nodes", "pods", "workloads")},
    )
    status = service_status(snapshot, plan(snapshot).service_plans[service.ref], None, None)
    told = {condition.reason: condition.message for condition in status.conditions}
    _assert_told(case, told)


@pytest.mark.parametrize("case", POOLS, ids=lambda case: case.reason)
def test_a_refused_pool_says_where_and_what_to_do(case: Case) -> None:
    pool = wire.parse_pool(yaml.safe_load(case.manifest))
    others = tuple(other for other in case.pools if other.name != pool.name)
    snapshot = a_snapshot(pools=(pool, *others), nodes=case.nodes)
    decided = plan(snapshot)
    view = next(view for view in decided.pools if view.pool.name == pool.name)
    status = pool_status(view, decided.repartitions.actions.get(pool.name), NOW)
    told = {condition.reason: condition.message for condition in status.conditions}
    _assert_told(case, told)


def _assert_told(case: Case, told: dict[str, str]) -> None:
    assert case.reason in told, told
    message = told[case.reason]
    assert case.field in message
    for part in case.says:
        assert part in message
    if case.field.startswith("spec"):
        assert helps(message)


def test_every_reason_that_refuses_has_a_case() -> None:
    shown = {case.reason for case in (*SERVICES, *POOLS)}
    kinds = (Accepted, PlacementReason, PoolAccepted, Discovered)
    refusing = {reason for kind in kinds for reason in kind if not reason.is_true}
    # Shown by tests of their own: no manifest alone makes them.
    assert refusing - shown == {Accepted.INTERNAL_ERROR, Accepted.UNKNOWN_MODEL}


def test_every_reason_why_gpus_are_not_as_planned_is_named_by_a_test() -> None:
    """Most need a rollout or a backend that goes wrong, which no manifest alone makes."""
    tests = Path(__file__).parent.parent
    text = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("*.py"))
    assert [reason for reason in LayoutReady if f"LayoutReady.{reason.name}" not in text] == []
