"""`make demo-budget`: money is counted, a scale-up is refused, and a raised limit lifts it."""

import asyncio
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.load import steady_load

SERVICE = Ref("team-a", "chat")
BUDGET = "/apis/tessera.dev/v1alpha1/tenantbudgets/team-a"
MODEL = "hf://meta-llama/Llama-3.2-1B-Instruct"
SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 3,
    "queue": {"target": 5},
    "scaleUp": {"stabilizationWindow": "0s", "pods": 2, "period": "5s"},
    "scaleDown": {"stabilizationWindow": "8s"},
}
PLENTY = "100000"
# Ten minutes, which the operator commits for every replica beyond minReplicas.
_HOLD_HOURS = Decimal(1) / 6
_RECONCILE_SECONDS = 5.0


async def run(cluster: InstalledCluster) -> None:
    """Show spend, grant one replica and refuse the next, and raise the limit."""
    await _limit(cluster, PLENTY)
    await _serve(cluster)
    budget = await _wait_for_budget(cluster, {"WithinLimits"})
    await _show_budgets(cluster)
    (window,) = budget["status"]["spend"]["windows"]
    hourly = Decimal((await cluster.service(SERVICE))["status"]["cost"]["perHour"])
    enough_for_two = (
        Decimal(window["spent"])
        + Decimal(window["committed"])
        + hourly * (_HOLD_HOURS * Decimal("1.5"))
    )
    cluster.say(f"minReplicas costs {hourly:.4f} per hour; the limit is now {enough_for_two:.4f}")
    await _limit(cluster, f"{enough_for_two:.9f}")
    base = await cluster.address(SERVICE)
    async with steady_load(base, SERVICE.name, clients=160, tokens=200) as load:
        await _wait_for_budget(cluster, {"BudgetExhausted"})
        scaling = await _wait_for_scaling(
            cluster, lambda status: status["reason"] == "BudgetExhausted"
        )
        if scaling["desiredReplicas"] != 2:
            raise StepError(f"2 replicas are affordable, {scaling['desiredReplicas']} are desired")
        cluster.say(f"{scaling['desiredReplicas']} desired: BudgetExhausted: {scaling['message']}")
        await _show_budgets(cluster)
        await _limit(cluster, PLENTY)
        raised = time.monotonic()
        await _wait_for_scaling(cluster, lambda status: status["desiredReplicas"] == 3)
        waited = time.monotonic() - raised
        cluster.say(f"the limit was raised, and the third replica granted after {waited:.1f} s")
        if waited > _RECONCILE_SECONDS:
            raise StepError(f"a raised limit took {waited:.1f} s, longer than 1 reconcile")
    await _show_bill(cluster)
    if load.failures:
        raise StepError(f"{len(load.failures)} requests failed, first: {load.failures[0]}")
    cluster.say(await cluster.run("kubectl", "delete", "tenantbudget", "team-a"))
    await until(
        lambda: cluster.service(SERVICE),
        lambda body: body["status"]["tenant"]["reason"] in ("NoBudget", "BudgetRequired"),
        "the service says that it has no budget",
        10,
    )


async def _serve(cluster: InstalledCluster) -> None:
    """One small service whose replicas rise at once."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}}
    await cluster.api.apply("/api/v1/namespaces/team-a", namespace, "kubectl")
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": SERVICE.name, "namespace": SERVICE.namespace},
        "spec": {"model": {"uri": MODEL}, "scaling": SCALING},
    }
    path = f"/apis/tessera.dev/v1alpha1/namespaces/team-a/inferenceservices/{SERVICE.name}"
    await cluster.api.apply(path, body, "kubectl")
    await until(
        lambda: cluster.service(SERVICE),
        lambda body: condition(body, "Ready").get("status") == "True",
        "the service is Ready",
        60,
    )


async def _limit(cluster: InstalledCluster, amount: str) -> None:
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "TenantBudget",
        "metadata": {"name": "team-a"},
        "spec": {
            "owner": "anna@team-a.example",
            "tenant": {"namespaces": ["team-a"]},
            "timeZone": "Europe/Berlin",
            "limits": [{"window": "Month", "amount": amount}],
        },
    }
    await cluster.api.apply(BUDGET, body, "kubectl")


async def _wait_for_budget(cluster: InstalledCluster, reasons: set[str]) -> Json:
    budget: Json = await until(
        lambda: cluster.api.get(BUDGET),
        lambda body: condition(body, "WithinBudget").get("reason") in reasons,
        f"the budget says {' or '.join(sorted(reasons))}",
        30,
    )
    return budget


async def _wait_for_scaling(cluster: InstalledCluster, holds: Callable[[Json], bool]) -> Json:
    async def read_scaling() -> Json:
        status: Json = (await cluster.service(SERVICE))["status"]["scaling"]
        return status

    status: Json = await until(read_scaling, holds, "the scaling that the money allows", 30)
    return status


async def _show_budgets(cluster: InstalledCluster) -> None:
    cluster.say(
        "\n" + (await cluster.run("kubectl", "get", "tenantbudgets", "-o", "wide")).rstrip()
    )


async def _show_bill(cluster: InstalledCluster) -> None:
    """Print the costs that the command reports."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "tessera"),
        *("cost", "--by", "service", "--since", "5m", "--prometheus", cluster.world.prometheus_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    cluster.say(f"tessera cost --by service --since 5m\n{output.decode().rstrip()}")
    if process.returncode or "team-a/chat" not in output.decode():
        raise StepError("the bill does not show team-a/chat")
