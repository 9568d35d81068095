"""A fleet in which one object of each kind is driven, and its twin in which it is not."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from tessera.api.schema import CustomResource
from tessera.domain.kinds.kinds import BATCH_INFERENCES, MODEL_PROVIDERS, MODEL_ROUTES, NODE_LAYOUTS
from tessera.domain.kinds.kinds import KINDS as CRDS
from tessera.domain.observed.snapshot import Ref
from tessera.resources.api_resources import CLAIMS
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL, a_provider_spec
from tests.generation.schema_walk import Leaf
from tests.hostile.twin import A100, HOSTILE, Body, Fleet, Twins
from world.object_comparison import HISTORY, comparable

TENANTS = ("team-a", HOSTILE)
# Everything that belongs to the driven tenant: namespace, budget, pool with its images, node.
_OWN = (HOSTILE, f"{HOSTILE}-0", f"tessera-system-prepull/tessera-prepull-{HOSTILE}-vllm")
DRIVEN: Mapping[str, ObjectKey] = {
    "InferenceService": ObjectKey("inferenceservices", HOSTILE, "chat"),
    "BatchInference": ObjectKey("batchinferences", HOSTILE, "night"),
    "AcceleratorPool": ObjectKey("acceleratorpools", "", HOSTILE),
    "TenantBudget": ObjectKey("tenantbudgets", "", HOSTILE),
    "NodeLayout": ObjectKey("nodelayouts", "", f"{HOSTILE}-0"),
    "ModelRoute": ObjectKey("modelroutes", HOSTILE, "assistant"),
    "ModelProvider": ObjectKey("modelproviders", "", HOSTILE),
}
# No cycle reads price lists, and gates are played with their services in tests of their own.
DRIVEN_KINDS = tuple(kind for kind in CRDS if kind.kind in DRIVEN)
_OTHER_SPECS: Mapping[str, Body] = {
    "PriceList": {
        "entries": [{"from": "2026-01-01", "models": ["chat"], "input": "1", "output": "4"}]
    },
    "QualityGate": {"suite": {"configMap": {"name": "suite"}}},
}
_NAMES = {kind.plural: kind.kind for kind in CRDS} | {"deployments": "Deployment"}
# What a leaf needs beside it, as rules over several fields demand: field of the leaf, and the
# fields to set (or to remove, for None) before it is driven.
_SCHEDULE = {
    "minReplicas": 1,
    "maxReplicas": 1000,
    "idle": {"after": "10m"},
    "schedules": [{"cron": "0 8 * * *"}],
}
_NODE_TEMPLATE = {
    "product": A100,
    "gpus": 1,
    "maxNodes": 2,
    "taints": [{"key": "a", "effect": "NoSchedule"}],
}
_COMPANIONS: Mapping[str, Mapping[str, Any]] = {
    "spec.scaling.schedules[].timeZone": {"scaling": _SCHEDULE},
    "spec.scaling.schedules[].minReplicas": {"scaling": _SCHEDULE},
    "spec.scaling.schedules[].maxReplicas": {"scaling": _SCHEDULE},
    "spec.scaling.minReplicas": {"scaling": {"maxReplicas": 1000, "idle": {"after": "10m"}}},
    "spec.scaling.maxReplicas": {"scaling": {"minReplicas": 1}},
    "spec.model.shape.activeParameters": {
        "model": {
            "uri": SMALL,
            "shape": {
                "parameters": 10**13,
                "layers": 16,
                "attentionHeads": 32,
                "kvHeads": 8,
                "headDim": 64,
                "maxPositionEmbeddings": 131072,
            },
        }
    },
    "spec.podTemplate.env[].name": {"podTemplate": {"env": [{"name": "A", "value": "a"}]}},
    "spec.podTemplate.env[].value": {"podTemplate": {"env": [{"name": "A"}]}},
    "spec.tolerations[].key": {"tolerations": [{"operator": "Exists"}]},
    "spec.tolerations[].operator": {"tolerations": [{"key": "a"}]},
    "spec.tolerations[].value": {"tolerations": [{"key": "a"}]},
    "spec.tolerations[].effect": {"tolerations": [{"key": "a"}]},
    "spec.tolerations[].tolerationSeconds": {"tolerations": [{"key": "a", "effect": "NoExecute"}]},
    **{
        f"spec.nodeTemplate.{field}": {"nodeTemplate": _NODE_TEMPLATE}
        for field in (
            *("product", "gpus", "maxNodes", "expectedStart", "labels{}", "migLayout{}"),
            *("taints[].key", "taints[].value", "taints[].effect"),
        )
    },
    **{
        f"spec.entries[].fromCost.{field}": {
            "entries": [
                {
                    "from": "2026-01-01",
                    "models": ["chat"],
                    "fromCost": {"factor": "1", "atLeast": "1"},
                }
            ]
        }
        for field in ("factor", "atLeast", "atMost")
    },
    **{
        f"spec.suite.claim.{field}": {"suite": {"claim": {"claimName": "data", "path": "s"}}}
        for field in ("claimName", "path")
    },
    "spec.rollout.strategy": {"rollout": {"gateRef": "gate"}},
    "spec.mig.layout{}": {"mig": {"mode": "Static", "layout": {}}},
    "spec.service": {"model": None},
    **{
        f"spec.targets[].provider.{field}": {
            "targets": [{"name": "outside", "provider": {"name": HOSTILE, "model": "Big"}}]
        }
        for field in ("name", "model")
    },
    "spec.publishing[].namespaces[]": {
        "tenant": {"namespaces": [HOSTILE, "example", "0", f"{'example':a<63}"]}
    },
}
# Steps that the schema of the leaf allows and a rule over several fields refuses.
REFUSED_BY_RULES = {
    ("BatchInference spec.model.cache.type", "legal"),
    ("BatchInference spec.model.cache.type", "highest"),
    ("BatchInference spec.service", "removed"),
    ("InferenceService spec.podTemplate.env[].value", "removed"),
    ("ModelRoute spec.targets[].service", "removed"),
    ("PriceList spec.entries[].input", "removed"),
    ("PriceList spec.entries[].output", "removed"),
}


def build(fleet: Fleet, *tenants: str) -> None:
    """Give each tenant a pool, a node, a budget, a service and a batch of their own."""
    for tenant in tenants or TENANTS:
        # The plan of one layout problem is made for all pools with `mig` at once.
        mig: Body = {"mig": {"mode": "Auto", "backend": "Agent"}} if tenant == HOSTILE else {}
        fleet.add_pool(tenant, **mig)
        fleet.add_node(f"{tenant}-0", tenant, {"1g.10gb": 7})
        report_node_layout(fleet, tenant)
        fleet.add_budget(tenant, "1000000")
        fleet.serve(
            "chat", tenant, placement={"pools": [tenant], "mig": "Auto"}, scaling={"maxReplicas": 4}
        )
        fleet.running[Ref(tenant, "chat")] = 1.0
        claim = {"metadata": {"name": "data", "namespace": tenant}}
        fleet.cluster.put(CLAIMS, claim | {"spec": {"accessModes": ["ReadWriteMany"]}})
        fleet.cluster.put(BATCH_INFERENCES, _batch(fleet, tenant))
        targets = [{"service": "small", "when": {"maxScore": 1}}, {"service": "chat"}]
        route = {"metadata": {"name": "assistant", "namespace": tenant}}
        fleet.cluster.put(MODEL_ROUTES, route | {"spec": {"targets": targets}})
        provider = {"metadata": {"name": tenant}, "spec": a_provider_spec(tenants=[tenant])}
        fleet.cluster.put(MODEL_PROVIDERS, provider)


def base_spec(kind: CustomResource, tenant: str) -> Body:
    """Return the spec of an object of a tenant before any of its leaves is driven."""
    if kind.kind in _OTHER_SPECS:
        return deepcopy(_OTHER_SPECS[kind.kind])
    fleet = Fleet()
    build(fleet, tenant)
    key = DRIVEN[kind.kind]
    key = ObjectKey(key.plural, key.namespace and tenant, key.name.replace(HOSTILE, tenant))
    return deepcopy(fleet.cluster.objects[key]["spec"])


def _batch(fleet: Fleet, tenant: str) -> Body:
    created = f"{fleet.at:%Y-%m-%dT%H:%M:%SZ}"
    meta = {"name": "night", "namespace": tenant, "creationTimestamp": created}
    spec = {
        "claimName": "data",
        "input": "in.jsonl",
        "output": "out.jsonl",
        "model": {"uri": SMALL},
        "placement": {"pools": [tenant]},
    }
    return {"metadata": meta, "spec": spec}


def report_node_layout(fleet: Fleet, tenant: str) -> None:
    """Write what the agent of the tenant's node reports."""
    node = f"{tenant}-0"
    slices = [
        {"profile": "1g.10gb", "start": start, "uuid": f"MIG-{node}-{start}", "memoryMiB": 9728}
        for start in range(7)
    ]
    gpu = {
        "index": 0,
        "uuid": f"GPU-{node}",
        "product": A100,
        "memoryMiB": 81920,
        "mode": "Enabled",
        "slices": slices,
    }
    status = {"partitioningEnabled": True, "driverVersion": "580.95.05", "gpus": [gpu]}
    layout = {"metadata": {"name": node}, "status": status}
    fleet.cluster.put(NODE_LAYOUTS, layout, "node-agent")


def state(fleet: Fleet) -> dict[str, Any]:
    """Return all objects without what has to differ, but for the record of the spend."""
    return {
        key.describe(): comparable(body, None, HISTORY.get(_NAMES.get(key.plural, ""), ()))
        for key, body in fleet.cluster.objects.items()
        if key.name != "tessera-spend"
    }


class DrivenTwins(Twins):
    """Twins of which the hostile one has one object driven through its values."""

    def __init__(self, *kinds: CustomResource) -> None:
        super().__init__(build)
        self.keys = [DRIVEN[kind.kind] for kind in kinds]
        self.key = self.keys[0]

    async def settle(self) -> None:
        """Run cycles over both until neither writes anything, three at most."""
        for _ in range(3):
            await self.run(cycles=1)
            outcomes = [fleet.outcome for fleet in self.both]
            if not any(outcome is None or outcome.writes for outcome in outcomes):
                break

    def restart(self) -> None:
        """Start new processes, which read everything that was recorded in a status."""
        for fleet in self.both:
            fleet.restart()

    def edit(self, change: Callable[[Body], object], key: ObjectKey | None = None) -> None:
        """Change the driven object in place, as somebody who may write all of it."""
        key = key or self.key
        body = self.hostile.cluster.objects[key]
        before = deepcopy(body.get("spec"))
        change(body)
        if body.get("spec") != before:
            body["metadata"]["generation"] += 1
        self.hostile.cluster.touch(key)

    @contextmanager
    def driving(self, leaf: Leaf) -> Iterator[None]:
        """Prepare the object for its leaf, and bring it back afterwards."""
        part = leaf.path[0]
        body = self.hostile.cluster.objects[self.key]
        before = deepcopy(body.get(part))
        self.edit(lambda body: prepare(body, leaf))
        yield
        self.edit(lambda body: _restore(body, part, before))
        if self.key.plural == BATCH_INFERENCES.plural:
            for fleet in self.both:
                fleet.cluster.discard(self.key)
                fleet.cluster.put(BATCH_INFERENCES, _batch(fleet, HOSTILE))

    def differences_of_others(self) -> list[str]:
        # The bill is counted when anything changes, and at least every 15 s.
        lines = self.differences(*_OWN)
        return [line for line in lines if not line.startswith("bill ")]

    def reasons(self) -> Mapping[str, str]:
        """Return the reasons of the conditions of the driven object, by type."""
        status = self.hostile.cluster.objects[self.key].get("status", {})
        conditions = status.get("conditions", ())
        return {condition["type"]: condition["reason"] for condition in conditions}


def prepare(body: Body, leaf: Leaf) -> None:
    """Set beside a leaf what rules over several fields demand."""
    for name, value in _COMPANIONS.get(leaf.field, {}).items():
        if value is None:
            body["spec"].pop(name, None)
        else:
            body["spec"][name] = deepcopy(value)


def _restore(body: Body, part: str, before: Any) -> None:
    body.pop(part, None)
    if before is not None:
        body[part] = before
