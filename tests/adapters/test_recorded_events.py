"""The API server accepts the Events of the operator, and kubectl's question finds them."""

from datetime import timedelta
from typing import Any

from tessera.adapters.kube.client import KubeCluster
from tessera.api.meta import Condition
from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import Budget
from tessera.ports import ClusterObject, EventOutcome
from tessera.reconcile.event_recorder import EventRecorder
from tessera.resources.api_resources import EVENTS
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW, a_service


def a_refusal(message: str) -> tuple[Condition, ...]:
    return (
        Condition(
            type="Accepted",
            status="False",
            reason="InvalidSpec",
            message=message,
            observed_generation=1,
            last_transition_time=NOW,
        ),
    )


async def test_the_api_server_keeps_events_series_and_those_of_cluster_scoped_objects(
    cluster: KubeCluster,
) -> None:
    outcomes: list[EventOutcome] = []
    seconds = 0.0
    recorder = EventRecorder(
        cluster,
        instance="tessera-operator-0",
        clock=lambda: NOW + timedelta(seconds=seconds),
        monotonic=lambda: seconds,
        count=outcomes.append,
    )
    chat = ClusterObject(
        key=ObjectKey("inferenceservices", "default", "chat"),
        uid="uid-recorded-chat",
        plan_input=a_service(),
    )
    budget = Budget(ref=Ref("", "team-a"), generation=1, spec=None)
    team = ClusterObject(
        key=ObjectKey("tenantbudgets", "", "team-a"), uid="uid-recorded-team", plan_input=budget
    )
    for text in ("ü" * 1024, "twice", "twice"):
        status = InferenceServiceStatus(conditions=a_refusal(text))
        recorder.record(INFERENCE_SERVICES, chat, status)
        await recorder.write_pending()
        seconds += 1.0
    recorder.record(
        TENANT_BUDGETS, team, budget.status.model_copy(update={"conditions": a_refusal("1 of 2")})
    )
    await recorder.write_pending()
    assert outcomes == [EventOutcome.WRITTEN] * 4
    first, second = await found_events(cluster, "uid-recorded-chat")
    assert (first["type"], first["reason"]) == ("Warning", "InvalidSpec")
    assert first["reportingComponent"] == "tessera-operator"
    assert (second["message"], second["series"]["count"]) == ("twice", 2)
    (limit,) = await found_events(cluster, "uid-recorded-team")
    assert (limit["metadata"]["namespace"], limit["message"]) == ("default", "1 of 2")


async def found_events(cluster: KubeCluster, uid: str) -> list[dict[str, Any]]:
    """Return the Events of an object, as `kubectl describe` asks for them."""
    query = {"fieldSelector": f"involvedObject.uid={uid}"}
    status, body = await cluster.request("GET", EVENTS.path(None), query)
    assert status == 200, body
    events: list[dict[str, Any]] = body["items"]
    return events
