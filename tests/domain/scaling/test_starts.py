"""How long replicas take to start, by phase: what is measured, recorded, and used as the lead."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.service_status import StartStatus
from tessera.domain.observed.snapshot import ContainerExit, Pod, Ref
from tessera.domain.scaling.policies.capacity.policy import CapacityAssessment
from tessera.domain.scaling.starts import (
    DEFAULT_LEAD,
    MAX_LEAD,
    StartPhase,
    lead_of,
    next_start_status,
    phase_now,
    phase_seconds,
    start_of,
    typical_start,
)
from tests.builders import NOW, a_pod, a_service, a_snapshot, a_spec, a_workload, at, plan_of

VARIANT = "a100-1g-10gb"
RECORDED = StartStatus(
    pod="chat-9",
    variant=VARIANT,
    created_at=at(-5000),
    seconds=210,
    schedule_seconds=10,
    image_seconds=50,
    engine_seconds=150,
)


def a_start(name: str = "chat-0", created: float = -1000, **seconds: float | None) -> Pod:
    """Build a replica with the seconds of its phases; None for what has not ended."""
    spans = {"schedule": 2.0, "image": 40.0, "engine": 168.0, **seconds}
    times: dict[str, Any] = {"created": at(created)}
    last = created
    for phase, field in (("schedule", "bound"), ("image", "started"), ("engine", "ready_since")):
        span = spans[phase]
        last = last + span if span is not None else last
        times[field] = None if span is None else at(last)
    return a_pod(name, containers_ready=times["ready_since"] is not None, **times)


def test_a_start_has_the_times_of_its_pod_by_phase() -> None:
    start = start_of(a_start())
    assert start is not None
    seconds = {phase: span.total_seconds() for phase, span in start.phases.items()}
    assert seconds == {"schedule": 2, "image": 40, "engine": 168}
    assert start.lead == timedelta(seconds=208)


@pytest.mark.parametrize(
    ("pod", "phases"),
    [
        (a_start(engine=None), None),
        (replace(a_start(), bound=None), None),
        (replace(a_start(), started=None), ["schedule"]),
        # Clocks of nodes differ from that of the API server.
        (replace(a_start(), started=at(-999)), ["schedule"]),
        (replace(a_start(), started=at(0)), ["schedule"]),
        (replace(a_start(), ready_since=at(-998)), None),
    ],
    ids=["not ready", "not bound", "ran again", "before bound", "after ready", "ready at once"],
)
def test_what_pod_times_do_not_say_is_not_known(pod: Pod, phases: list[str] | None) -> None:
    start = start_of(pod)
    assert (None if start is None else list(start.phases)) == phases


def test_a_pod_that_is_older_than_its_binding_says_has_waited_no_negative_time() -> None:
    start = start_of(replace(a_start(), created=at(0)))
    assert start is not None
    assert start.phases[StartPhase.SCHEDULE] == timedelta()


@pytest.mark.parametrize(
    ("pod", "phase"),
    [
        (a_start(schedule=None, image=None, engine=None), ("schedule", 1000)),
        (a_start(image=None, engine=None), ("image", 998)),
        (a_start(engine=None), ("engine", 958)),
        (a_start(), None),
        (replace(a_start(engine=None), terminating=True), None),
        (
            replace(a_start(image=None, engine=None), last_exit=ContainerExit(code=1)),
            None,
        ),
    ],
    ids=["schedule", "image", "engine", "ready", "terminating", "failed"],
)
def test_a_replica_that_starts_is_in_one_phase(pod: Pod, phase: tuple[str, int] | None) -> None:
    now = phase_now(pod, NOW)
    assert (None if now is None else (now[0], now[1].total_seconds())) == phase


def test_the_lead_is_the_median_of_what_replicas_took() -> None:
    pods = [
        a_start(name, engine=engine)
        for name, engine in (("a", 50), ("b", 60), ("c", 660), ("d", None))
    ]
    start = typical_start(pods, RECORDED, VARIANT)
    assert start is not None
    assert (start.pod, lead_of(start)) == ("b", timedelta(seconds=100))
    assert sum(start.phases.values(), timedelta()) == timedelta(seconds=102)


@pytest.mark.parametrize(
    ("recorded", "variant", "lead"),
    [
        (None, VARIANT, DEFAULT_LEAD),
        (RECORDED, VARIANT, timedelta(seconds=200)),
        (RECORDED, "h100", DEFAULT_LEAD),
        (RECORDED.model_copy(update={"seconds": 9999}), VARIANT, MAX_LEAD),
        (RECORDED.model_copy(update={"seconds": 0}), VARIANT, timedelta()),
    ],
)
def test_without_replicas_the_recorded_start_of_the_hardware_is_the_lead(
    recorded: StartStatus | None, variant: str, lead: timedelta
) -> None:
    assert lead_of(typical_start([], recorded, variant)) == lead


def test_the_policy_looks_ahead_by_the_recorded_start_while_no_replica_is_ready() -> None:
    for recorded, lead in ((None, DEFAULT_LEAD), (RECORDED, timedelta(seconds=200))):
        service = a_service(spec=a_spec(scaling={"minReplicas": 1}))
        service = replace(service, status=service.status.model_copy(update={"start": recorded}))
        pods = (a_start(engine=None),)
        fleet = a_snapshot(service, pods=pods, workloads=(a_workload(1),))
        assessment = plan_of(fleet).service_plans[Ref("team-a", "chat")].scale.assessment
        assert isinstance(assessment, CapacityAssessment)
        assert assessment.capacity.lead == lead


def test_each_start_is_recorded_once_and_later_readiness_changes_nothing() -> None:
    first = next_start_status([a_start("a")], None, NOW)
    assert first is not None
    assert (first.pod, first.seconds, dict(phase_seconds(first))) == (
        "a",
        210,
        {"schedule": 2, "image": 40, "engine": 168},
    )
    for pods in (
        [],
        [a_start("a"), a_start("b", created=-500, engine=None)],
        # It became ready again.
        [a_start("a", engine=700)],
        # The clock of its node is ahead.
        [a_start("a"), a_start("b", created=-500, engine=7200)],
        # An older one that took longer.
        [a_start("a"), a_start("z", created=-1001, engine=900)],
    ):
        assert next_start_status(pods, first, NOW) is first
    second = next_start_status([a_start("a"), a_start("b", created=-500)], first, NOW)
    assert second is not None
    assert second.pod == "b"


def test_a_start_whose_container_ran_again_is_recorded_without_these_phases() -> None:
    recorded = next_start_status([replace(a_start(), started=None)], None, NOW)
    assert recorded is not None
    assert (recorded.seconds, recorded.image_seconds, recorded.engine_seconds) == (210, None, None)
    assert dict(phase_seconds(recorded)) == {"schedule": 2}
