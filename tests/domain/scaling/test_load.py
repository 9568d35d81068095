"""Readings of replicas -> load of a service."""

from datetime import datetime

from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Pod, PodReading, Readings, Ref
from tessera.domain.scaling.load import load_of, service_readings, usable_readings
from tessera.domain.scaling.state import ServiceLoad
from tests.builders import NOW, a_pod, at, readings_of


def _load(
    pods: list[Pod],
    readings: Readings | None,
    replicas: int,
    now: datetime,
    demand: GatewayDemand | None = None,
) -> ServiceLoad:
    usable = usable_readings(readings, now)
    answers = service_readings(readings, usable, Ref("team-a", "chat"), pods)
    return load_of(pods, answers, replicas, now, demand)


def read(pods: list[Pod], readings: Readings | None) -> tuple[float | None, float | None]:
    load = _load(pods, readings, 2, NOW)
    return load.waiting, load.activity


def test_waiting_is_summed_and_activity_averaged() -> None:
    pods = [a_pod("a"), a_pod("b")]
    readings = Readings(
        at=NOW,
        pods={
            pods[0].ref: PodReading(waiting=30, running=1, activity=0.9),
            pods[1].ref: PodReading(waiting=10, running=1, activity=0.5),
        },
    )
    assert read(pods, readings) == (40, 0.7)
    assert _load(pods, readings, 2, NOW).running == 2


def test_an_activity_that_contradicts_the_requests_of_one_replica_is_no_reading() -> None:
    pods = [a_pod("a"), a_pod("b")]
    busy = PodReading(waiting=30, running=4, activity=0.9)
    # For a moment a request that has just come contradicts it too.
    for seems_idle, measured in [(True, None), (False, 0.45)]:
        idle = PodReading(waiting=10, running=4, activity=0.0, seems_idle=seems_idle)
        load = _load(pods, Readings(at=NOW, pods={pods[0].ref: busy, pods[1].ref: idle}), 2, NOW)
        assert (load.measured_activity, load.idle_replicas) == (measured, int(seems_idle))


def test_one_settled_replica_without_a_reading_makes_the_sum_unknown() -> None:
    pods = [a_pod("a"), a_pod("b")]
    assert read(pods, readings_of(pods[:1], waiting=30)) == (None, None)


def test_what_the_other_replicas_and_the_gateway_hold_is_known_to_wait() -> None:
    pods, demand = [a_pod("a"), a_pod("b")], GatewayDemand(queued=5)
    readings = readings_of(pods[:1], waiting=30)
    assert _load(pods, readings, 2, NOW, demand).known_waiting == 35
    assert _load(pods, None, 2, NOW, demand).known_waiting == 5


def test_a_replica_that_only_just_serves_needs_no_reading_yet() -> None:
    pods = [a_pod("a"), a_pod("b", ready_since=at(-5))]
    assert read(pods, readings_of(pods[:1], waiting=30, activity=0.5)) == (30, 0.5)


def test_a_young_replica_may_have_one_metric_before_the_other() -> None:
    pods = [a_pod("a"), a_pod("b", ready_since=at(-5))]
    readings = Readings(
        at=NOW,
        pods={
            pods[0].ref: PodReading(waiting=30, activity=0.9),
            pods[1].ref: PodReading(activity=0.1),
        },
    )
    assert read(pods, readings) == (30, 0.5)


def test_leaving_replicas_are_not_counted() -> None:
    pods = [a_pod("a"), a_pod("b", serving=False, draining_since=at(-5))]
    assert read(pods, readings_of(pods, waiting=30, activity=0.5)) == (30, 0.5)


def test_requests_that_run_on_draining_replicas_will_run_on_the_others() -> None:
    pods = [a_pod("a"), a_pod("b", serving=False, draining_since=at(-5))]
    assert _load(pods, readings_of(pods, running=3), 1, NOW).running == 6
    assert _load(pods, readings_of(pods[:1], running=3), 1, NOW).running == 3


def test_old_readings_and_failed_questions_are_no_readings() -> None:
    pods = [a_pod("a")]
    old = readings_of(pods, at=at(-31), waiting=3)
    failed = readings_of(pods, waiting=3, problem="connection refused")
    assert read(pods, old) == read(pods, failed) == read(pods, None) == (None, None)


def test_each_metric_may_be_missing_alone() -> None:
    pods = [a_pod("a")]
    readings = Readings(at=NOW, pods={pods[0].ref: PodReading(waiting=7)})
    assert read(pods, readings) == (7, None)
