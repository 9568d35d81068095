"""The service that every scenario runs, on one kind of GPU."""

from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.domain.incremental import constant
from tessera.domain.observed.snapshot import Budget, Ref
from tessera_lab.fleet.model import FleetModel
from tessera_lab.fleet.policies.product import FleetObjects, WholeGpuPool
from tessera_lab.fleet.sizing import sized_fleet

_NAMESPACE, _NODES = "team-a", 3
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
    pool = WholeGpuPool(name="a100", product="NVIDIA-A100-SXM4-80GB", price=price, nodes=_NODES)
    budgets = () if hourly_limit is None else (_budget(hourly_limit),)
    return pool.objects(Ref(_NAMESPACE, "chat"), _SPEC, budgets)


@constant
def sized() -> FleetModel:
    """Return the fleet that the product sizes from the manifests."""
    objects = fleet_objects()
    return sized_fleet(objects.spec, objects.choice().fit)


def _budget(hourly_limit: str) -> Budget:
    spec = {
        "owner": "finance@example.com",
        "tenant": {"namespaces": [_NAMESPACE]},
        "limits": [{"window": "Hour", "amount": hourly_limit}],
    }
    return Budget(ref=Ref("", _NAMESPACE), generation=1, spec=TenantBudgetSpec.model_validate(spec))
