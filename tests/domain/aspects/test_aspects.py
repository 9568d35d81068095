"""Aspects are asked alike, and one that raises costs no other."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.reasons import Accepted
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.aspects import aspects, slo, speed
from tessera.domain.aspects.aspect import PlacedService, Reported
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import Ref
from tessera.domain.status.service import service_status
from tests.builders import (
    NOW,
    a_pod,
    a_service,
    a_snapshot,
    a_speed_reading,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
PODS = (a_pod("chat-0"), a_pod("chat-1"))


def _measured_snapshot(status: InferenceServiceStatus, seconds: float) -> Any:
    readings = readings_of(
        PODS, at=at(seconds), speeds={CHAT: (a_speed_reading(preemptions=60.0),)},
        speeds_at=at(seconds),
    )  # fmt: skip
    return a_snapshot(
        replace(a_service(), status=status),
        pods=PODS,
        workloads=(a_workload(2),),
        readings=readings,
        at=at(seconds),
    )


def test_each_aspect_is_a_value_that_is_reported_and_most_are_a_field_of_the_status() -> None:
    assert tuple(aspect.name for aspect in aspects.ASPECTS) == Reported._fields
    fields = {aspect.name for aspect in aspects.ASPECTS if aspect.as_status is not None}
    assert fields <= set(InferenceServiceStatus.model_fields)


def test_one_that_raises_keeps_what_is_reported_and_the_others_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot = _measured_snapshot(InferenceServiceStatus(), 0)
    service_plan = plan_of(snapshot).service_plans[CHAT]
    status = service_status(snapshot, service_plan, None, None)
    assert status.speed is not None

    def fail(*_: object) -> None:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(speed, "service_speed", fail)
    measured = plan_of(_measured_snapshot(status, 600)).service_plans[CHAT]
    assert measured.accepted.reason is Accepted.VALID
    assert measured.reported.speed == status.speed
    assert measured.reported.preemption is not None
    assert measured.reported.preemption != status.preemption


def test_the_targets_of_a_service_whose_measurement_raises_stay() -> None:
    # Attributes of it are missing, so that whatever measures it raises.
    broken = object.__new__(ServiceLatency)
    readings = readings_of(PODS, latencies={CHAT: broken}, latencies_at=NOW)
    placed = PlacedService(a_service(), None, PODS, ())
    with pytest.raises(AttributeError):
        slo.measured_slo(placed, readings)
    samples = list(aspects.aspect_samples("latency", placed, readings, Reported()))
    targets = [
        labels[-1] for series, labels, _ in samples if series.name.endswith("target_seconds")
    ]
    assert targets == ["ttft", "itl"]
