"""Slips of the platform and labels of a node, beside a tenant with a budget."""

from typing import Any

import pytest

from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.observed.snapshot import Ref
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.manifest import ObjectKey
from tests.hostile.twin import HOSTILE, Fleet, Twins

CHAT = ObjectKey("inferenceservices", "team-a", "chat")
H100 = "NVIDIA-H100-80GB-HBM3"


def add_tenants(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    for name in ("a100-0", "a100-1", "odd"):
        fleet.add_node(name, "a100", {"1g.10gb": 7})
    fleet.add_budget("team-a", "500")
    fleet.add_budget(HOSTILE, "0.37", "Hour")
    fleet.serve("chat", "team-a", scaling={"minReplicas": 2, "maxReplicas": 6})
    fleet.running[Ref("team-a", "chat")] = 1.0


EDITS: dict[str, dict[str, Any]] = {
    "typo": {"timeZone": "Europe/Berln", "limits": [{"window": "Hour", "amount": "90000"}]},
    "unknown field": {"ceiling": "90000"},
    "overlap": {"tenant": {"namespaces": [HOSTILE, "team-a"]}},
    "amount": {"limits": [{"window": "Hour", "amount": "many"}]},
}


@pytest.mark.parametrize("edit", EDITS)
async def test_an_unusable_edit_of_his_budget_gives_him_nothing(edit: str) -> None:
    """Without him and with him everything of the others is equal; he stays at his old limit."""
    twins = Twins(add_tenants)
    for fleet in twins.both:
        fleet.serve("x", HOSTILE, replicas=1)
    await twins.run(20)
    budget = twins.hostile.add_budget(HOSTILE, "0.37", "Hour", **EDITS[edit])
    for fleet in twins.both:
        fleet.serve("x", HOSTILE, replicas=9)
    await twins.run(20)
    status = twins.hostile.cluster.objects[budget]["status"]
    conditions = {condition["type"]: condition["reason"] for condition in status["conditions"]}
    assert conditions["Enforcing"] == "LastAcceptedSpec"
    assert 1 <= twins.hostile.replicas_of(HOSTILE) == twins.peaceful.replicas_of(HOSTILE) < 9
    assert twins.hostile.spent(HOSTILE) == twins.peaceful.spent(HOSTILE)
    twins.assert_equal()


async def test_a_second_budget_and_a_second_pool_with_earlier_names_take_nothing_over() -> None:
    twins = Twins(add_tenants)
    await twins.run(20)
    twins.hostile.add_pool("a-new", "9.50", nodeSelector={"pool": "a100"})
    newcomer = twins.hostile.add_budget("a-new", "0", tenant={"namespaces": ["team-a"]})
    twins.hostile.waiting[Ref("team-a", "chat")] = twins.peaceful.waiting[Ref("team-a", "chat")] = (
        400.0
    )
    await twins.run(20)
    assert newcomer.plural == TENANT_BUDGETS.plural
    twins.assert_equal(HOSTILE, "a-new")


@pytest.mark.parametrize("labels", [{"nvidia.com/gpu.product": H100}, {"old": "yes"}])
async def test_the_labels_of_one_node_take_no_pool_out_and_make_nobody_free(
    labels: dict[str, str],
) -> None:
    def build(fleet: Fleet) -> None:
        fleet.add_pool("a000", nodeSelector={"old": "yes"})
        add_tenants(fleet)

    twins = Twins(build)
    await twins.run(20)
    twins.hostile.cluster.discard(ObjectKey("nodes", "", "odd"))
    twins.hostile.add_node("odd", "a100", {"1g.10gb": 7}, labels=labels)
    await twins.run(20)
    pool = twins.hostile.cluster.objects[ObjectKey("acceleratorpools", "", "a100")]
    assert pool["status"]["nodes"] == 2
    assert twins.hostile.spent("team-a") == twins.peaceful.spent("team-a") > 0
    # A node that changes is charged at once, and the message of Placed lists the hardware.
    hostile, peaceful = (
        {
            condition["type"]: condition["reason"]
            for condition in fleet.cluster.objects[CHAT]["status"]["conditions"]
        }
        for fleet in twins.both
    )
    assert hostile == peaceful
    assert twins.hostile.pods_of("team-a") == twins.peaceful.pods_of("team-a")


async def test_a_namespace_without_a_budget_gets_nothing_where_one_is_required() -> None:
    def build(fleet: Fleet) -> None:
        fleet.require_budget = True
        fleet.restart()
        fleet.add_pool("a100")
        fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
        fleet.add_budget("team-a", "500")
        fleet.serve("chat", "team-a", scaling={"minReplicas": 2, "maxReplicas": 6})

    twins = Twins(build)
    twins.hostile.serve("x", HOSTILE, scaling={"minReplicas": 5, "maxReplicas": 9})
    await twins.run(20)
    status = twins.hostile.cluster.objects[
        next(key for key in twins.hostile.cluster.objects if key.name == "x")
    ]["status"]
    assert twins.hostile.replicas_of(HOSTILE) == 0
    assert status["tenant"] == {"reason": "BudgetRequired"}
    twins.assert_equal()


async def test_a_namespace_that_a_pool_does_not_list_takes_nothing_there() -> None:
    def build(fleet: Fleet) -> None:
        fleet.add_pool("a100", namespaces=["team-a"])
        fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
        fleet.add_budget("team-a", "500")
        fleet.add_budget(HOSTILE, "500")
        fleet.serve("chat", "team-a", scaling={"minReplicas": 2, "maxReplicas": 6})

    twins = Twins(build)
    twins.hostile.serve("x", HOSTILE, placement={"pools": ["a100"]})
    await twins.run(20)
    assert twins.hostile.replicas_of(HOSTILE) == 0
    twins.assert_equal()


async def test_a_deployment_scaled_by_hand_adds_nothing_to_a_closed_budget() -> None:
    fleet = Fleet()
    fleet.require_budget = True
    fleet.restart()
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    budget = fleet.add_budget(HOSTILE, "500")
    chat = fleet.serve("chat", HOSTILE, scaling={"minReplicas": 1, "maxReplicas": 7})
    for _ in range(10):
        await fleet.cycle()
    fleet.cluster.discard(budget)
    fleet.waiting[Ref(chat.namespace, chat.name)] = 1000.0
    deployment = next(key for key in fleet.cluster.objects if key.plural == "deployments")
    for _ in range(20):
        await fleet.cycle()
        fleet.cluster.put(
            DEPLOYMENTS,
            {
                "metadata": {"name": deployment.name, "namespace": HOSTILE},
                "spec": {"replicas": 6},
            },
        )
    await fleet.cycle()
    assert fleet.replicas_of(HOSTILE) == 1
