"""Events are counted in series, limited for each object, and never stop a cycle."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from tessera.api.meta import Condition
from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import Budget
from tessera.ports import ClusterError, ClusterObject, EventOutcome
from tessera.reconcile.event_recorder import (
    MAX_OBJECTS,
    MAX_PENDING,
    MAX_SERIES,
    EventRecorder,
)
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.builders import NOW, a_service


def a_status(reason: str, message: str = "1 of 2") -> dict[str, Any]:
    condition = Condition(
        type="Accepted",
        status="False",
        reason=reason,
        message=message,
        observed_generation=1,
        last_transition_time=NOW,
    )
    return {"conditions": (condition,)}


def a_chat(uid: str = "uid-chat", name: str = "chat") -> ClusterObject:
    key = ObjectKey("inferenceservices", "team-a", name)
    return ClusterObject(key=key, uid=uid, plan_input=a_service(status=InferenceServiceStatus()))


class Recording:
    """A recorder, and the requests that it sends."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.requests: list[dict[str, Any]] = []
        self.outcomes = Counter[EventOutcome]()
        self.refusal: Exception | None = None
        self.recorder = EventRecorder(
            self,
            instance="tessera-operator-0",
            clock=lambda: NOW + timedelta(seconds=self.seconds),
            monotonic=lambda: self.seconds,
            count=lambda outcome: self.outcomes.update([outcome]),
        )

    async def record_event(self, event: ObjectManifest) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(dict(event.body))

    async def tell(self, reason: str, observed: ClusterObject | None = None, **text: str) -> None:
        status = InferenceServiceStatus(**a_status(reason, **text))
        self.recorder.record(INFERENCE_SERVICES, observed or a_chat(), status)
        await self.recorder.write_pending()

    @property
    def notes(self) -> list[str]:
        return [request["note"] for request in self.requests]


async def test_an_event_names_its_object_its_writer_and_its_reason() -> None:
    recording = Recording()
    await recording.tell("InvalidFlag")
    (event,) = recording.requests
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"chat.{int(NOW.timestamp() * 1e6):016x}", "namespace": "team-a"},
        "eventTime": "2026-11-20T12:00:00.000000Z",
        "reportingController": "tessera-operator",
        "reportingInstance": "tessera-operator-0",
        "action": "Accepted",
        "reason": "InvalidFlag",
        "type": "Warning",
        "note": "1 of 2",
        "regarding": {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "InferenceService",
            "namespace": "team-a",
            "name": "chat",
            "uid": "uid-chat",
        },
    }


async def test_events_of_cluster_scoped_objects_are_in_the_default_namespace() -> None:
    recording = Recording()
    key = ObjectKey("tenantbudgets", "", "a" * 253)
    budget = Budget(ref=Ref("", "b"), generation=1, spec=None, status=TenantBudgetStatus())
    observed = ClusterObject(key=key, uid="uid-b", plan_input=budget)
    recording.recorder.record(
        TENANT_BUDGETS, observed, TenantBudgetStatus(**a_status("InvalidTimeZone"))
    )
    await recording.recorder.write_pending()
    (event,) = recording.requests
    assert event["metadata"]["namespace"] == "default"
    assert "namespace" not in event["regarding"]
    assert len(event["metadata"]["name"]) <= 253


async def test_an_equal_event_within_six_minutes_is_counted_in_a_series() -> None:
    recording = Recording()
    for seconds in (0, 100, 400, 800):
        recording.seconds = seconds
        await recording.tell("InvalidFlag")
    first, second, third, fresh = recording.requests
    assert "series" not in first
    assert second["metadata"] == third["metadata"] == first["metadata"]
    assert second["series"] == {"count": 2, "lastObservedTime": "2026-11-20T12:01:40.000000Z"}
    assert third["series"]["count"] == 3
    assert third["eventTime"] == first["eventTime"]
    assert fresh["metadata"] != first["metadata"]
    assert "series" not in fresh


async def test_events_of_one_moment_keep_their_order_by_name() -> None:
    recording = Recording()
    for number in range(3):
        await recording.tell("InvalidFlag", message=f"flag {number}")
    names = [request["metadata"]["name"] for request in recording.requests]
    assert names == sorted(set(names))


async def test_ten_events_a_minute_are_written_for_an_object_and_the_others_dropped() -> None:
    recording = Recording()
    for number in range(15):
        recording.seconds = number
        await recording.tell("InvalidFlag", message=f"flag {number}")
    await recording.tell("InvalidFlag", a_chat("uid-other", "other"))
    assert recording.notes == [*(f"flag {number}" for number in range(10)), "1 of 2"]
    assert recording.outcomes[EventOutcome.DROPPED] == 5
    recording.seconds = 60
    await recording.tell("InvalidFlag", message="a minute after the first")
    await recording.tell("InvalidFlag", message="too early")
    assert recording.notes[-1] == "a minute after the first"


async def test_a_refused_event_is_counted_and_stops_no_other() -> None:
    recording = Recording()
    recording.refusal = ClusterError("403 events.events.k8s.io is forbidden")
    await recording.tell("InvalidFlag", message="refused")
    recording.refusal = RuntimeError("unexpected")
    await recording.tell("InvalidFlag", message="raised")
    recording.refusal = None
    await recording.tell("InvalidFlag", message="written")
    assert recording.notes == ["written"]
    assert recording.outcomes == {EventOutcome.REFUSED: 2, EventOutcome.WRITTEN: 1}


async def test_a_long_text_fits_into_the_limit_of_the_api_server() -> None:
    recording = Recording()
    await recording.tell("InvalidFlag", message="ü" * 1024)
    assert 1020 <= len(recording.notes[0].encode()) <= 1024
    assert recording.notes[0].endswith("ü…")


async def test_what_waits_and_what_is_remembered_is_bounded() -> None:
    recording = Recording()
    refused = InferenceServiceStatus(**a_status("InvalidFlag"))
    for number in range(MAX_PENDING + 3):
        recording.recorder.record(INFERENCE_SERVICES, a_chat(f"uid-{number}"), refused)
    assert recording.outcomes == {EventOutcome.DROPPED: 3}
    await recording.recorder.write_pending()
    for number in range(20):
        await recording.tell("InvalidFlag", a_chat("uid-last"), message=f"flag {number}")
    histories = recording.recorder._histories
    assert len(histories) <= MAX_OBJECTS
    assert max(len(history.series) for history in histories.values()) == MAX_SERIES


async def test_a_running_recorder_writes_what_is_recorded() -> None:
    recording = Recording()
    task = asyncio.create_task(recording.recorder.run())
    status = InferenceServiceStatus(**a_status("InvalidFlag"))
    recording.recorder.record(INFERENCE_SERVICES, a_chat(), status)
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    assert recording.notes == ["1 of 2"]
