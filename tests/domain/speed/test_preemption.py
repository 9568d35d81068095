"""Preemptions at steady load lower the concurrent requests of a replica, one rollout at a time."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.service_status import PreemptionStatus
from tessera.domain.aspects.aspects import explain_aspects
from tessera.domain.observed.snapshot import ObservedService, Ref, SpeedReading
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.speed.preemption import next_preemption_status, preemption_message
from tessera.domain.status.events import event_notes
from tessera.domain.status.service import service_status
from tests.builders import (
    SMALL,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_speed_reading,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
VARIANT = "a100-1g-10gb"
# 30 requests at once, of which the cache holds 20.
FULL: dict[str, Any] = {"running": 20.0, "kv_usage": 1.0, "preemptions": 60.0}


def planned(service: ObservedService, seconds: float = 0, **reading: Any) -> ServicePlan:
    """Return the plan of a service whose two replicas read so."""
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    readings = readings_of(
        pods,
        at=at(seconds),
        speeds={CHAT: (a_speed_reading(**reading),)},
        speeds_at=at(seconds),
    )
    snapshot = a_snapshot(
        service, pods=pods, workloads=(a_workload(2),), readings=readings, at=at(seconds)
    )
    return plan_of(snapshot).service_plans[CHAT]


def a_status(**fields: Any) -> PreemptionStatus:
    return PreemptionStatus(
        **{
            "model": SMALL,
            "variant": VARIANT,
            "since": at(0),
            "at": at(0),
            "preemptions": 60,
            "requests": 1200,
            **fields,
        }
    )


def next_status(
    current: PreemptionStatus | None,
    seconds: float,
    spec: InferenceServiceSpec | None = None,
    **reading: Any,
) -> PreemptionStatus | None:
    spec = spec or a_spec()
    choice = planned(a_service(spec=spec)).choice
    assert choice is not None
    measured = a_speed_reading(**{**FULL, **reading})
    return next_preemption_status(spec, choice, measured, current, at(seconds))


def test_the_first_reading_is_reported_and_lowers_nothing() -> None:
    assert next_status(None, 0) == a_status()


def test_preemptions_that_last_ten_minutes_lower_the_limit_to_what_the_cache_holds() -> None:
    seen = next_status(None, 0)
    assert next_status(seen, 299) == seen
    later = next_status(seen, 300)
    assert later is not None
    assert (later.since, later.at, later.max_num_seqs) == (at(0), at(300), None)
    confirmed = next_status(later, 600)
    assert confirmed is not None
    assert confirmed.max_num_seqs == 18
    # The next lowering needs ten minutes under this limit.
    assert confirmed.since == at(600)


def test_one_reading_halves_a_limit_at_most() -> None:
    confirmed = next_status(a_status(), 600, running=2.0)
    assert confirmed is not None
    assert confirmed.max_num_seqs == 15


@pytest.mark.parametrize(
    "reading", [{"preemptions": 11.0}, {"preemptions": None}, {"requests": 99.0}]
)
def test_few_preemptions_and_few_requests_are_no_steady_load(reading: dict[str, Any]) -> None:
    assert next_status(None, 0, **reading) is None


def test_preemptions_that_end_before_they_are_confirmed_are_forgotten() -> None:
    assert next_status(a_status(), 600, preemptions=5.0) is None
    between = next_status(a_status(), 600, preemptions=9.0)
    assert between == a_status()


def test_a_lowered_limit_stays_when_preemptions_end() -> None:
    lowered = a_status(max_num_seqs=18)
    assert next_status(lowered, 6000, preemptions=0.0) == lowered


def test_a_limit_of_the_spec_is_never_lowered_but_advised() -> None:
    spec = a_spec(engine={"maxNumSeqs": 20})
    status = next_status(a_status(), 600, spec)
    assert status is not None
    assert status.max_num_seqs is None
    assert "lower spec.engine.maxNumSeqs" in preemption_message(status)


@pytest.mark.parametrize("other", [{"model": "hf://a/b"}, {"variant": "b200-1gpu"}])
def test_what_was_measured_of_another_model_or_variant_is_dropped(other: dict[str, Any]) -> None:
    lowered = a_status(max_num_seqs=18, **other)
    assert next_status(lowered, 600, preemptions=0.0) is None


def test_a_lowered_limit_is_a_rollout_with_its_reason_and_ends_by_the_spec() -> None:
    service = a_service()
    built = planned(service)
    status = service_status(a_snapshot(service), built, None, None)
    assert built.choice is not None
    assert built.choice.fit.limits.max_num_seqs == 30

    status = status.model_copy(update={"preemption": a_status()})
    preempted = planned(replace(service, status=status), seconds=600, **FULL)
    changed = service_status(a_snapshot(service), preempted, None, None)
    assert changed.preemption is not None
    assert changed.preemption.max_num_seqs == 18
    [note] = [each for each in event_notes(status, changed) if each.action == "Lowered"]
    assert note.reason == "PreemptedAtSteadyLoad"
    assert note.message.startswith("60 preemptions in 1200 requests within 5 minutes")
    assert "a replica runs at most 18 from now on" in note.message

    lowered = planned(replace(service, status=changed), seconds=605)
    assert lowered.choice is not None
    assert lowered.choice.fit.limits.max_num_seqs == 18
    assert lowered.template is not None
    assert built.template is not None
    assert lowered.template.record.template_hash != built.template.record.template_hash
    assert lowered.template.record.effective_values.max_num_seqs == 18
    again = service_status(a_snapshot(service), lowered, None, None)
    assert not [each for each in event_notes(changed, again) if each.action == "Lowered"]

    explained = explain_aspects(lowered.placed, a_snapshot(service), lowered.reported)
    speed = next(each for each in explained if each.topic == "speed")
    assert dict(speed.numbers)["preemptions"] == note.message

    own = replace(service, spec=a_spec(engine={"maxNumSeqs": 25}), status=changed)
    assert (choice := planned(own, seconds=610).choice) is not None
    assert choice.fit.limits.max_num_seqs == 25


def test_a_reading_while_replicas_are_replaced_says_nothing_of_the_new_limit() -> None:
    status = service_status(a_snapshot(a_service()), planned(a_service()), None, None)
    service = replace(a_service(), status=status.model_copy(update={"preemption": a_status()}))
    pods = (a_pod("chat-0", template="old"), a_pod("chat-1", template="new"))
    speeds = {CHAT: (a_speed_reading(**FULL),)}
    readings = readings_of(pods, at=at(600), speeds=speeds, speeds_at=at(600))
    snapshot = a_snapshot(
        service, pods=pods, workloads=(a_workload(2),), readings=readings, at=at(600)
    )
    assert plan_of(snapshot).service_plans[CHAT].reported.preemption == a_status()


def test_an_unmeasured_cache_lowers_by_a_tenth() -> None:
    reading = SpeedReading(requests=1200, preemptions=60)
    choice = planned(a_service()).choice
    assert choice is not None
    status = next_preemption_status(a_spec(), choice, reading, a_status(), at(600))
    assert status is not None
    assert status.max_num_seqs == 27
