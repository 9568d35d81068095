"""The service that every scenario runs, on one kind of GPU."""

from dataclasses import replace
from datetime import date
from functools import lru_cache

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.domain.observed.snapshot import Budget, Node, ObservedService, Pool, Ref
from tessera_lab.fleet.model import FleetModel
from tessera_lab.fleet.policies.product import FleetObjects
from tessera_lab.fleet.sizing import sized_fleet

_NAMESPACE, _NODES, _NODE_GPUS = "team-a", 3, 8
MAX_REPLICAS = 16
PRICE = "3.43"
_SPEC = {
    "model": {"uri": "hf://Qwen/Qwen3-14B"},
    "slo": {"ttftP95": "1s", "itlP95": "50ms"},
    "context": {"typicalInputTokens": 1000, "typicalOutputTokens": 200, "maxModelLen": 8192},
    "scaling": {"minReplicas": 1, "maxReplicas": MAX_REPLICAS},
}


def fleet_objects(price: str = PRICE, hourly_limit: str | None = None) -> FleetObjects:
    """Return the manifests at a price of a GPU hour, and with a TenantBudget if it has a limit."""
    pool = {
        "nodeSelector": {"pool": "a100"},
        "tier": "OnDemand",
        "prices": [{"from": date(2026, 1, 1), "perGPUHour": price}],
    }
    labels = {
        "pool": "a100",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.count": str(_NODE_GPUS),
    }
    return FleetObjects(
        service=_service(),
        pools=(
            Pool(
                name="a100",
                uid="a100",
                generation=1,
                spec=AcceleratorPoolSpec.model_validate(pool),
            ),
        ),
        nodes=tuple(
            Node(
                name=f"node-{number}",
                labels=labels,
                schedulable=True,
                allocatable={"nvidia.com/gpu": _NODE_GPUS},
            )
            for number in range(_NODES)
        ),
        budgets=() if hourly_limit is None else (_budget(hourly_limit),),
    )


@lru_cache(maxsize=1)
def sized() -> FleetModel:
    """Return the fleet that the product sizes from the manifests."""
    objects = fleet_objects()
    choice = objects.first_plan().choice
    if choice is None:
        raise ValueError("the service of the scenarios fits no pool")
    return replace(sized_fleet(objects.spec, choice.fit), max_replicas=MAX_REPLICAS)


def _service() -> ObservedService:
    return ObservedService(
        ref=Ref(_NAMESPACE, "chat"),
        uid="chat",
        generation=1,
        spec=InferenceServiceSpec.model_validate(_SPEC),
    )


def _budget(hourly_limit: str) -> Budget:
    spec = {
        "owner": "finance@example.com",
        "tenant": {"namespaces": [_NAMESPACE]},
        "limits": [{"window": "Hour", "amount": hourly_limit}],
    }
    return Budget(name=_NAMESPACE, generation=1, spec=TenantBudgetSpec.model_validate(spec))
