"""`kubectl describe` tells the history of an object."""

from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.streams import wait_for_replicas
from world.api import Api
from world.testing import event_messages, eventually

TOLD = ("BoundsChanged", "BudgetExhausted", "RollingOut")


async def describe_events(
    namespace: ScenarioNamespace, kind: str, name: str
) -> list[tuple[str, str]]:
    """Return reason and message of the Events that kubectl prints, in its order."""
    text = await namespace.cluster.run("kubectl", "-n", namespace.name, "describe", kind, name)
    _, _, table = text.partition("\nEvents:")
    rows = [line.split(None, 2) for line in table.splitlines()[3:] if line.strip()]
    return [(reason, message) for _, reason, message in rows]


async def wait_for_event(api: Api, reason: str, about: str, namespace: str = "default") -> None:
    async def is_written() -> None:
        assert await event_messages(api, reason, about, namespace) != []

    await eventually(is_written)


async def test_a_service_that_was_scaled_held_and_rolled_shows_that_in_order(
    namespace: ScenarioNamespace,
) -> None:
    api, name = namespace.cluster.api, namespace.name
    await namespace.apply_service(scaling={"minReplicas": 1, "maxReplicas": 6})
    await namespace.wait_until_ready()
    await namespace.apply_service(scaling={"minReplicas": 2, "maxReplicas": 6})
    await wait_for_event(api, "BoundsChanged", "chat", name)
    await wait_for_replicas(namespace, 2)
    await namespace.wait_for_condition("chat", "Progressing", "RolloutComplete")
    async with a_budget(namespace, "0.0100"):
        scaling = {"minReplicas": 4, "maxReplicas": 6}
        await namespace.apply_service(scaling=scaling)
        await wait_for_event(api, "BudgetExhausted", "chat", name)
        env = [{"name": "STEP", "value": "rolled"}]
        await namespace.apply_service(scaling=scaling, podTemplate={"env": env})
        for reason in TOLD:
            await wait_for_event(api, reason, "chat", name)
        # Two of the four replicas complete no rollout, whatever their version.
        await namespace.wait_for_condition("chat", "Progressing", "BudgetExhausted")
        await wait_for_event(api, "MinReplicasExceedBudget", name)
        events = await describe_events(namespace, "tsvc", "chat")
        limits = await describe_events(namespace, "tenantbudget", namespace.name)
    assert list(dict.fromkeys(reason for reason, _ in events if reason in TOLD)) == list(TOLD)
    messages: dict[str, str] = {}
    for reason, message in events:
        messages.setdefault(reason, message)
    assert "Placed" not in messages  # its condition says it
    assert "scaled from 1 to 2 replicas: spec.scaling.minReplicas is 2" in messages["BoundsChanged"]
    assert f"held at 2 replicas: TenantBudget/{namespace.name}: " in messages["BudgetExhausted"]
    assert "MinReplicasExceedBudget" in dict(limits)
