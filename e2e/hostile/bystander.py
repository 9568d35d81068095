"""The tenant whom nothing may happen to, and the oracle of what he owes."""

from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any

from demo.cluster import InstalledCluster, Json, fund
from scenarios.actions import ScenarioNamespace
from scenarios.kills import read_operator_pod
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.resources.api_resources import DEPLOYMENTS, DISRUPTION_BUDGETS, PODS, SERVICES
from tests.hostile.score import SCORE
from world.object_comparison import comparable_objects, differences
from world.testing import eventually

NAME = "bystander"
REPLICAS = 2
# Of `examples/00-pools.yaml`: USD per A100 and hour.
PER_GPU_HOUR = Fraction("1.79")
# The share of a GPU that a 1g.10gb slice is: 1 of 7 compute and 1 of 8 memory slices.
SLICE = (Fraction(1, 7) + Fraction(1, 8)) / 2
# Nano-units that rounding may take or add in a cycle, per replica.
_ROUNDING = 2000


@dataclass(slots=True)
class Bystander:
    """A tenant at rest: a service with two replicas on slices, and a budget that suffices."""

    cluster: InstalledCluster
    namespace: ScenarioNamespace
    restarts: int = 0
    before: dict[str, Any] = field(default_factory=dict)

    async def settle(self) -> None:
        """Bring up the service, and remember everything that must stay."""
        await fund(self.cluster, NAME, NAME)
        await self.namespace.apply_service(replicas=REPLICAS)
        await self.namespace.wait_until_ready()
        await self.namespace.wait_for_condition("chat", "Progressing", "RolloutComplete")
        await eventually(self._controllers_have_followed)
        self.before = await self.state()
        self.restarts = await self.operator_restarts()

    async def _controllers_have_followed(self) -> None:
        """Assert that the built-in controllers have counted the replicas too."""
        for kind, field_name in (
            (DEPLOYMENTS, "availableReplicas"),
            (DISRUPTION_BUDGETS, "currentHealthy"),
        ):
            for body in await self.namespace.list_objects(kind):
                assert body["status"].get(field_name) == REPLICAS, body["status"]

    async def state(self) -> dict[str, Any]:
        """Return specs, replicas, slices and conditions, without what differs by the moment."""
        objects = [await self.cluster.api.get(TENANT_BUDGETS.path(None, NAME))]
        for kind in (INFERENCE_SERVICES, DEPLOYMENTS, SERVICES, DISRUPTION_BUDGETS):
            listed = await self.cluster.api.get(kind.path(NAME))
            objects += [body | {"kind": kind.kind} for body in listed["items"]]
        pods = (await self.cluster.api.get(PODS.path(NAME)))["items"]
        placement = {
            pod["metadata"]["name"]: (pod["metadata"]["uid"], pod["spec"].get("nodeName"))
            for pod in pods
        }
        return comparable_objects(objects) | {"pods": placement}

    async def operator_restarts(self) -> int:
        status = (await read_operator_pod(self.cluster))["status"]
        return int(status["containerStatuses"][0]["restartCount"])

    async def assert_undisturbed(self) -> None:
        """Assert that all is as before, the operator ran on, and the spend is what it must be."""
        lines: list[str] = []

        async def all_is_as_before() -> None:
            lines[:] = differences(self.before, await self.state())
            assert lines == []

        try:
            await eventually(all_is_as_before)
        except AssertionError:
            SCORE.add(len(lines))
            raise
        SCORE.add(0)
        assert await self.operator_restarts() == self.restarts, "the operator restarted"
        await self.assert_exact_spend()

    async def assert_exact_spend(self) -> None:
        """Assert that the recorded spend is price x recorded time, to the rounding of a cycle."""
        budget = await self.cluster.api.get(TENANT_BUDGETS.path(None, NAME))
        pods = (await self.cluster.api.get(PODS.path(NAME)))["items"]
        spend = budget["status"]["spend"]
        as_of = datetime.fromisoformat(spend["asOf"])
        seconds = sum(((as_of - _bound(pod)).total_seconds() for pod in pods), 0.0)
        owed = Fraction(seconds) * PER_GPU_HOUR * SLICE / 3600
        spent = Fraction(spend["windows"][0]["spent"])
        assert len(pods) == REPLICAS
        assert abs(spent - owed) <= Fraction(_ROUNDING, 10**9) * REPLICAS, (
            f"{float(spent):.9f} USD recorded until {as_of}, {float(owed):.9f} owed"
        )


def _bound(pod: Json) -> datetime:
    (moment,) = (
        condition["lastTransitionTime"]
        for condition in pod["status"]["conditions"]
        if condition["type"] == "PodScheduled"
    )
    return datetime.fromisoformat(moment)
