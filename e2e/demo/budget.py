"""`make demo-budget`: money is counted, a scale-up is refused, and a raised limit lifts it."""

import asyncio
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from demo.load import steady
from demo.stage import Json, Ref, SceneError, Stage, condition, until

SERVICE = Ref("team-a", "chat")
BUDGET = "/apis/tessera.dev/v1alpha1/tenantbudgets/team-a"
MODEL = "hf://meta-llama/Llama-3.2-1B-Instruct"
SCALING = {
    "minReplicas": 1,
    "maxReplicas": 3,
    "queue": {"target": 5},
    "scaleUp": {"stabilizationWindow": "0s", "pods": 2, "period": "5s"},
    "scaleDown": {"stabilizationWindow": "8s"},
}
PLENTY = "100000"
# Ten minutes, which the operator sets aside for every replica beyond the floor.
_HOLD_HOURS = Decimal(1) / 6
_TURN_SECONDS = 5.0


async def play(stage: Stage) -> None:
    """Spend shows, one replica is granted and the next refused, and a raised limit lifts it."""
    await _serve(stage)
    await _limit(stage, PLENTY)
    budget = await _funded(stage, {"WithinLimits"})
    await _show(stage)
    (window,) = budget["status"]["spend"]["windows"]
    hourly = Decimal((await stage.service(SERVICE))["status"]["cost"]["perHour"])
    enough_for_two = (
        Decimal(window["spent"])
        + Decimal(window["committed"])
        + hourly * (_HOLD_HOURS * Decimal("1.5"))
    )
    stage.say(f"the floor takes {hourly:.4f} an hour; the limit falls to {enough_for_two:.4f}")
    await _limit(stage, f"{enough_for_two:.9f}")
    base = await stage.address(SERVICE)
    async with steady(base, SERVICE.name, clients=160, tokens=200) as load:
        await _funded(stage, {"BudgetExhausted"})
        scaling = await _scaling(stage, lambda one: one["reason"] == "BudgetExhausted")
        if scaling["desiredReplicas"] != 2:
            raise SceneError(f"2 replicas can be paid, {scaling['desiredReplicas']} are wanted")
        stage.say(f"{scaling['desiredReplicas']} wanted: BudgetExhausted: {scaling['message']}")
        await _show(stage)
        await _limit(stage, PLENTY)
        raised = time.monotonic()
        await _scaling(stage, lambda one: one["desiredReplicas"] == 3)
        waited = time.monotonic() - raised
        stage.say(f"the limit was raised, and the third replica granted after {waited:.1f} s")
        if waited > _TURN_SECONDS:
            raise SceneError(f"a raised limit took {waited:.1f} s, longer than 1 turn")
    await _bill(stage)
    if load.failures:
        raise SceneError(f"{len(load.failures)} requests failed, first: {load.failures[0]}")
    stage.say(await stage.run("kubectl", "delete", "tenantbudget", "team-a"))
    await until(
        lambda: stage.service(SERVICE),
        lambda one: one["status"]["tenant"]["reason"] == "NoBudget",
        "the service says that it has no budget",
        10,
    )


async def _serve(stage: Stage) -> None:
    """One small service whose replicas rise at once."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}}
    await stage.api.apply("/api/v1/namespaces/team-a", namespace, "kubectl")
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": SERVICE.name, "namespace": SERVICE.namespace},
        "spec": {"model": {"uri": MODEL}, "scaling": SCALING},
    }
    path = f"/apis/tessera.dev/v1alpha1/namespaces/team-a/inferenceservices/{SERVICE.name}"
    await stage.api.apply(path, body, "kubectl")
    await until(
        lambda: stage.service(SERVICE),
        lambda one: condition(one, "Ready").get("status") == "True",
        "the service is Ready",
        60,
    )


async def _limit(stage: Stage, amount: str) -> None:
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
    await stage.api.apply(BUDGET, body, "kubectl")


async def _funded(stage: Stage, reasons: set[str]) -> Json:
    found: Json = await until(
        lambda: stage.api.get(BUDGET),
        lambda one: condition(one, "WithinBudget").get("reason") in reasons,
        f"the budget says {' or '.join(sorted(reasons))}",
        30,
    )
    return found


async def _scaling(stage: Stage, holds: Callable[[Json], bool]) -> Json:
    async def scaling() -> Json:
        found: Json = (await stage.service(SERVICE))["status"]["scaling"]
        return found

    found: Json = await until(scaling, holds, "the scaling that the money allows", 30)
    return found


async def _show(stage: Stage) -> None:
    stage.say("\n" + (await stage.run("kubectl", "get", "tenantbudgets", "-o", "wide")).rstrip())


async def _bill(stage: Stage) -> None:
    """What the command says of it."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "tessera"),
        *("cost", "--by", "service", "--since", "5m", "--prometheus", stage.world.prometheus_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    stage.say(f"tessera cost --by service --since 5m\n{output.decode().rstrip()}")
    if process.returncode or "team-a/chat" not in output.decode():
        raise SceneError("the bill does not show team-a/chat")
