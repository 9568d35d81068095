"""Specs of services, and the objects that are built from them."""

from typing import Any

from tessera.domain.observed.snapshot import Ref
from tessera.domain.planning.plan import Plan
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import EngineFacts
from tessera.domain.vllm.flag_classes import FlagClass, flag_rules
from tessera.resources import children
from tessera.resources.manifest import ObjectManifest
from tests.builders import (
    H100,
    LARGE,
    MEDIUM,
    SMALL,
    a_node,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    plan_of,
)

SHAPE = {
    "parameters": 800_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 2,
    "headDim": 32,
    "maxPositionEmbeddings": 2048,
}


def plan_service(spec: Any) -> Plan:
    return plan_of(
        a_snapshot(
            a_service(spec=spec),
            pools=(a_pool("a100", "1.60"), a_pool("h100", "2.50")),
            nodes=(
                a_node("a100", {"3g.40gb": 1, "1g.10gb": 4}),
                a_node("h100", whole=4, product=H100),
            ),
        )
    )


def objects(spec: Any) -> list[ObjectManifest]:
    fleet_plan = plan_service(spec)
    return list(children.service_manifests(fleet_plan.service_plans[Ref("team-a", "chat")]))


def deployment(spec: Any) -> dict[str, Any]:
    (manifest,) = [manifest for manifest in objects(spec) if manifest.kind.kind == "Deployment"]
    return dict(manifest.body)


def container(spec: Any) -> dict[str, Any]:
    engine_container: dict[str, Any] = deployment(spec)["spec"]["template"]["spec"]["containers"][0]
    return engine_container


SPECS = {
    "slice": a_spec(SMALL),
    "one-replica": a_spec(MEDIUM, replicas=1),
    "tensor-parallel": a_spec(
        LARGE,
        precision={"variants": [{"precision": "fp8"}]},
        context={"maxModelLen": 16384},
        model={"revision": "main", "servedName": "llama", "tokenSecretRef": {"name": "hub"}},
    ),
    "adapters": a_spec(
        MEDIUM,
        replicas=1,
        model={
            "adapters": [
                {"name": "sql", "uri": "hf://acme/sql-lora"},
                {"name": "tone", "uri": "pvc://adapters/tone", "rank": 24},
            ]
        },
    ),
    "own-additions": a_spec(
        SMALL,
        podTemplate={
            "labels": {"cost-centre": "4711"},
            "annotations": {"owner": "anna"},
            "env": [
                {"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"},
                {"name": "TRACE_KEY", "valueFrom": {"secretKeyRef": {"name": "trace"}}},
            ],
        },
    ),
    "claim": a_spec("pvc://weights/tiny", model={"shape": SHAPE}, drain={"timeout": "90s"}),
}


def free_flags(args: list[str], table: EngineFacts) -> set[str]:
    """Return the flags that a user may write as well."""
    rules = flag_rules()
    names = vllm_flags.parse(args, table)
    return {name for name in names if rules[name].flag_class is not FlagClass.SET}
