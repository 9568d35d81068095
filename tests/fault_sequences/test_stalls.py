"""An engine stalls in mid repartition: one replica of a service at a time leaves or is replaced."""

from tessera.api.pool_reasons import LayoutReady
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectKey
from tests.fault_sequences.layout_fleet import LayoutFleet
from tests.fault_sequences.layout_player import FleetObserver, end_findings
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS

CHAT = ObjectKey(INFERENCE_SERVICES.plural, "team-a", "chat")
# It stays on its slice, while that of another replica of its service is removed.
STALLED = ObjectKey(PODS.plural, "team-a", "chat-a100-1g-10gb-1")
# Then the stall is known, two minutes later, when the other replica drains.
_TICKS_BEFORE_THE_CHANGE = 22
_MAX_TICKS = 100


async def test_a_stalled_engine_is_replaced_while_another_replica_waits_to_leave() -> None:
    scenario = SCENARIOS["GPUs in use are cut"]
    fleet = LayoutFleet.begin(BACKENDS["agent"], scenario, seed=3)
    observer = FleetObserver(fleet)
    scenario.begin(fleet)
    await fleet.run_until_quiet()
    fleet.kube.stalled.add(STALLED)
    service = fleet.kube.pod(STALLED).service
    reason, drained, returned = None, set[ObjectKey](), set[ObjectKey]()
    for tick in range(_MAX_TICKS):
        if tick == _TICKS_BEFORE_THE_CHANGE:
            scenario.change(fleet)
        await fleet.tick()
        observer.look()
        others = {
            key: pod for key, pod in fleet.kube.pods() if pod.service == service and key != STALLED
        }
        serving = {key for key, pod in others.items() if pod.takes_requests}
        assert len(serving) >= fleet.min_replicas[service] - 1, fleet.describe()
        if STALLED in fleet.kube.objects:
            drained |= {key for key, pod in others.items() if pod.leaving}
        else:
            reason = reason or fleet.reason
            returned |= drained & serving
            if not end_findings(fleet):
                break
    assert reason == LayoutReady.REPARTITIONING
    assert returned, "the replica that drained serves until the stalled one is replaced"
    assert fleet.reason == LayoutReady.AS_PLANNED, fleet.describe()
    assert [*observer.findings, *end_findings(fleet)] == []
    assert fleet.kube.objects[CHAT]["status"]["replacement"]["pod"] == STALLED.name
    await fleet.close()
