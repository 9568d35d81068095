"""Tenants have keys, limits and budgets."""

import json
from datetime import timedelta
from decimal import Decimal

import openai
from openai.types import CompletionUsage

from demo.cluster import Json, condition
from demo.load import steady_load
from promises.installation import PATIENCE_SECONDS, create_namespace, gateway_for
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import HELLO
from tessera.adapters.clock import now
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from world.testing import eventually

_PER_MINUTE = 5
# Slow steps, so that few clients fill a replica.
_STEP_SECONDS, _CLIENTS = 0.1, 30
_SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 3,
    "queue": {"target": 4},
    "scaleUp": {"stabilizationWindow": "0s", "pods": 2, "period": "5s"},
}
_PLENTY = "100000"
# Ten minutes, which the operator commits for every replica beyond minReplicas.
_HOLD_HOURS = Decimal(1) / 6


async def use_keys(namespace: ScenarioNamespace) -> None:
    """A key opens what its tenant may use within its limits, and all of its usage is recorded."""
    await namespace.apply_service(replicas=1)
    guest = await create_namespace(namespace.cluster, f"{namespace.name}-guest")
    budget = TENANT_BUDGETS.path(None, namespace.name)
    usages: list[CompletionUsage] = []

    async def ask(client: openai.AsyncOpenAI) -> openai.APIStatusError | None:
        """Return how a request was refused, or None for an answer."""
        try:
            answer = await client.chat.completions.create(
                model="chat", messages=HELLO, max_tokens=6
            )
        except openai.APIStatusError as error:
            return error
        assert answer.usage is not None
        usages.append(answer.usage)
        return None

    async def check_refusal(client: openai.AsyncOpenAI, status: int) -> openai.APIStatusError:
        error = await ask(client)
        assert error is not None
        assert error.status_code == status, error
        return error

    async with (
        gateway_for(namespace) as gateway,
        gateway_for(guest) as other,
        gateway.client() as client,
        gateway.client("tsk-unknown") as stranger,
        other.client() as guest_client,
    ):

        async def tenant_alone_is_answered() -> None:
            assert await ask(client) is None
            await check_refusal(guest_client, 404)
            await check_refusal(stranger, 401)

        async def further_requests_are_too_many() -> None:
            refusal = await check_refusal(client, 429)
            assert 1 <= int(refusal.response.headers["retry-after"]) <= 60

        async def usage_is_exact() -> None:
            row = (await gateway.usage()).get("first", {})
            recorded = [row.get(key) for key in ("requests", "inputTokens", "outputTokens")]
            prompts = sum(usage.prompt_tokens for usage in usages)
            assert recorded == [
                len(usages),
                prompts,
                sum(usage.completion_tokens for usage in usages),
            ]

        await eventually(tenant_alone_is_answered, within=PATIENCE_SECONDS)
        limits = {"requests": {"perMinute": _PER_MINUTE}}
        await namespace.cluster.api.patch(budget, {"spec": {"rateLimits": limits}})
        await eventually(further_requests_are_too_many, within=PATIENCE_SECONDS)
        await eventually(usage_is_exact, within=PATIENCE_SECONDS)


def _zone_of_a_long_month() -> str:
    """Return a time zone whose month does not end soon: its floor costs more than a dollar.

    Amounts below a dollar are printed with four digits.
    """
    at = now()
    is_long = (at + timedelta(hours=12)).month == at.month
    return "UTC" if is_long else "Pacific/Kiritimati"


async def limit_spend(namespace: ScenarioNamespace) -> None:
    """A budget refuses the replica that it does not cover, with numbers, until it is raised."""
    cluster, name = namespace.cluster, namespace.name
    path = TENANT_BUDGETS.path(None, name)
    env = [{"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": _STEP_SECONDS})}]

    async def budget_is_within_limits() -> Json:
        budget = await cluster.api.get(path)
        assert condition(budget, "WithinBudget").get("reason") == "WithinLimits"
        (window,) = budget["status"]["spend"]["windows"]
        assert Decimal(window["committed"]) > 0, window
        return dict(window)

    async def third_replica_is_refused() -> None:
        budget, status = await cluster.api.get(path), await namespace.service_status()
        assert condition(budget, "WithinBudget").get("reason") == "BudgetExhausted"
        scaling = status["scaling"]
        assert scaling["reason"] == "BudgetExhausted", scaling
        assert (scaling["desiredReplicas"], status["readyReplicas"]) == (2, 2), scaling
        assert f"TenantBudget/{name}" in scaling["message"]
        assert f"month limit {limit} USD" in scaling["message"]

    async def third_replica_serves() -> None:
        status = await namespace.service_status()
        assert (status["scaling"]["desiredReplicas"], status["readyReplicas"]) == (3, 3), status

    async with a_budget(namespace, _PLENTY, _zone_of_a_long_month()):
        ref = await namespace.apply_service(
            scaling=_SCALING,
            engine={"maxNumSeqs": 4},
            slo={"itlP95": "1s"},
            podTemplate={"env": env},
        )
        await namespace.wait_until_ready(within=PATIENCE_SECONDS)
        window = await eventually(budget_is_within_limits, within=PATIENCE_SECONDS)
        hourly = Decimal((await namespace.service_status())["cost"]["perHour"])
        floor = Decimal(window["spent"]) + Decimal(window["committed"])
        # The second replica may stay for longer than the scene takes, the third is too much.
        limit = f"{floor + hourly * _HOLD_HOURS * Decimal('1.8'):.2f}"
        limits = [{"window": "Month", "amount": limit}]
        await cluster.api.patch(path, {"spec": {"limits": limits}})
        base = await cluster.address(ref)
        async with steady_load(base, ref.name, clients=_CLIENTS, tokens=20) as load:
            await eventually(third_replica_is_refused, within=PATIENCE_SECONDS)
            cluster.say((await namespace.service_status())["scaling"]["message"])
            limits = [{"window": "Month", "amount": _PLENTY}]
            await cluster.api.patch(path, {"spec": {"limits": limits}})
            await eventually(third_replica_serves, within=PATIENCE_SECONDS)
        assert load.failures == []
