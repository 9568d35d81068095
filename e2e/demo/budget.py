"""Money is counted, a scale-up is refused, and a raised limit lifts it."""

import time
from collections.abc import Callable
from decimal import Decimal

from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.load import steady_load
from demo.tenants import create_tenant, serve

SERVICE = Ref("team-b", "mail")
BUDGET = f"/apis/tessera.dev/v1alpha1/tenantbudgets/{SERVICE.namespace}"
SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 3,
    "queue": {"target": 5},
    "scaleUp": {"stabilizationWindow": "0s", "pods": 2, "period": "5s"},
    "scaleDown": {"stabilizationWindow": "8s"},
}
PLENTY = "100000"
_MAX_NUM_SEQS, _CLIENTS, _TOKENS = 4, 60, 200
# Ten minutes, which the operator commits for every replica beyond minReplicas.
_HOLD_HOURS = Decimal(1) / 6
_PATIENCE = 120.0


async def run(cluster: InstalledCluster) -> str:
    """Show spend, grant one replica and refuse the next, and raise the limit."""
    await create_tenant(cluster, SERVICE.namespace)
    service = await serve(cluster, SERVICE, scaling=SCALING, engine={"maxNumSeqs": _MAX_NUM_SEQS})
    budget = await _wait_for_budget(cluster, "WithinLimits")
    (window,) = budget["status"]["spend"]["windows"]
    hourly = Decimal(service["status"]["cost"]["perHour"])
    spent, committed = Decimal(window["spent"]), Decimal(window["committed"])
    enough_for_two = spent + committed + hourly * (_HOLD_HOURS * Decimal("1.5"))
    cluster.say(
        f"a replica costs {hourly:.4f} USD an hour; spent {spent:.4f}, committed {committed:.4f}; "
        f"the limit is now {enough_for_two:.4f}, enough for 2 replicas and not for 3"
    )
    await _limit(cluster, f"{enough_for_two:.9f}")
    base = await cluster.address(SERVICE)
    async with steady_load(base, SERVICE.name, clients=_CLIENTS, tokens=_TOKENS) as load:
        await _wait_for_budget(cluster, "BudgetExhausted")
        scaling = await _wait_for_scaling(
            cluster, lambda status: status["reason"] == "BudgetExhausted"
        )
        cluster.notebook.mark("budget refuses")
        if scaling["desiredReplicas"] != 2:
            raise StepError(f"2 replicas are affordable, {scaling['desiredReplicas']} are desired")
        cluster.say(f"{scaling['desiredReplicas']} desired: BudgetExhausted: {scaling['message']}")
        await _limit(cluster, PLENTY)
        cluster.notebook.mark("budget raised")
        raised = time.monotonic()
        await _wait_for_scaling(cluster, lambda status: status["desiredReplicas"] == 3)
        waited = time.monotonic() - raised
        await until(
            lambda: cluster.service(SERVICE),
            lambda body: body["status"].get("readyReplicas") == 3,
            "the third replica is ready",
            _PATIENCE,
        )
        ready = time.monotonic() - raised
    if load.failures:
        raise StepError(f"{len(load.failures)} requests failed, first: {load.failures[0]}")
    return (
        f"TenantBudget/{SERVICE.namespace} refused the third replica; after the limit was raised "
        f"it was granted in {waited:.1f} s and ready in {ready:.1f} s; {load.finished} requests "
        "were answered, none failed."
    )


async def _limit(cluster: InstalledCluster, amount: str) -> None:
    limits = [{"window": "Month", "amount": amount}]
    await cluster.api.patch(BUDGET, {"spec": {"limits": limits}})


async def _wait_for_budget(cluster: InstalledCluster, reason: str) -> Json:
    budget: Json = await until(
        lambda: cluster.api.get(BUDGET),
        lambda body: condition(body, "WithinBudget").get("reason") == reason,
        f"TenantBudget/{SERVICE.namespace} says {reason}",
        _PATIENCE,
    )
    return budget


async def _wait_for_scaling(cluster: InstalledCluster, holds: Callable[[Json], bool]) -> Json:
    async def read_scaling() -> Json:
        status: Json = (await cluster.service(SERVICE))["status"]["scaling"]
        return status

    status: Json = await until(read_scaling, holds, "the scaling that the money allows", _PATIENCE)
    return status
