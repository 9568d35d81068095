"""Whole cycles against an in-memory cluster."""

import asyncio
import contextlib
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.api_resource import ApiResource
from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.health.stall import EngineProgress
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.model.names import model_job_name
from tessera.domain.names import deployment_name
from tessera.domain.observed.snapshot import EngineReading, InFlight, Readings, Ref
from tessera.domain.planning.plan import PlanMemory
from tessera.reconcile import loop
from tessera.reconcile.loop import Backlog, Rest, Wakes, rest_after, run_loop
from tessera.reconcile.writing import write_order
from tessera.reconcile.writing.startup_resync import SERVICES_PER_CYCLE
from tessera.reconcile.writing.writer import NotLeadingError
from tessera.resources.api_resources import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    JOBS,
    NETWORK_POLICIES,
    POD_MONITORS,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from tessera.resources.manifest import ObjectKey
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW, SMALL, at
from tests.memory_operator import (
    CHAT,
    DEPLOYMENT,
    SERVICE,
    VARIANT,
    MemoryOperator,
    add_batch,
    add_pool_and_node,
    replica_of,
)


@pytest.fixture
def operator() -> MemoryOperator:
    memory_operator = MemoryOperator()
    add_pool_and_node(memory_operator)
    return memory_operator


def _named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team-a"}}


async def test_a_service_gets_all_its_objects_in_one_cycle(operator: MemoryOperator) -> None:
    operator.serve()
    await operator.reconcile()
    expected = {DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS, NETWORK_POLICIES, DISRUPTION_BUDGETS}
    assert {kind.plural for kind in expected} <= operator.kinds()
    assert operator.body(DEPLOYMENT)["spec"]["replicas"] == 2
    reasons = {
        condition["type"]: condition["reason"]
        for condition in operator.body(CHAT)["status"]["conditions"]
    }
    assert reasons["Placed"] == "Placed"


async def test_an_unchanged_fleet_costs_no_write(operator: MemoryOperator) -> None:
    operator.serve()
    await operator.reconcile()
    await operator.reconcile()
    assert (await operator.reconcile()).writes == 0


async def test_ready_replicas_without_metrics_cost_no_later_status(
    operator: MemoryOperator,
) -> None:
    """That a minute passes without a reading is nothing new where no replica has any."""
    operator.serve()
    await operator.reconcile()
    since = NOW.isoformat()
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": since}
        for kind in ("Ready", "ContainersReady", "tessera.dev/serving")
    ]
    for name in ("chat-0", "chat-1"):
        body = replica_of(DEPLOYMENT, name)
        operator.cluster.put(PODS, {**body, "status": {"conditions": conditions}})
    for _ in range(3):
        await operator.reconcile()
    for _ in range(30):
        operator.at += timedelta(seconds=5)
        operator.observations.readings = Readings(at=operator.at)
        assert (await operator.reconcile()).writes == 0
    balance = operator.body(CHAT)["status"]["conditions"][-1]
    assert (balance["type"], balance["reason"]) == ("LoadBalanced", "FailedGetMetrics")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (DEPLOYMENT, ("spec", "replicas")),
        (DEPLOYMENT, ("metadata", "labels")),
        (SERVICE, ("spec", "selector")),
        (ObjectKey("poddisruptionbudgets", "team-a", "chat"), ("spec", "maxUnavailable")),
        (ObjectKey("networkpolicies", "team-a", "tessera-engine"), ("spec", "ingress")),
        (
            ObjectKey("serviceaccounts", "team-a", "tessera-engine"),
            ("automountServiceAccountToken",),
        ),
    ],
)
async def test_a_field_removed_by_hand_is_back_after_a_cycle(
    operator: MemoryOperator, key: ObjectKey, path: tuple[str, ...]
) -> None:
    operator.serve()
    await operator.reconcile()
    before = dict(operator.body(key))
    operator.cluster.remove(key, *path)
    await operator.reconcile()
    assert operator.body(key) == before


async def test_a_field_removed_again_right_after_its_repair_is_repaired_again(
    operator: MemoryOperator,
) -> None:
    """No cycle sees the Service as repaired, so each cycle finds the same damage."""
    operator.serve(replicas=0)

    async def next_cycle() -> None:
        operator.at += timedelta(seconds=5)
        await operator.reconcile()

    for _ in range(3):  # nothing changes any more, so its plan is cached
        await next_cycle()
    before = dict(operator.body(SERVICE)["spec"])
    for _ in range(3):
        operator.cluster.remove(SERVICE, "spec", "selector")
        await next_cycle()
        assert operator.body(SERVICE)["spec"] == before


async def test_a_field_changed_by_hand_is_back_and_foreign_fields_stay(
    operator: MemoryOperator,
) -> None:
    operator.serve()
    await operator.reconcile()
    edit = {
        "metadata": {**_meta(DEPLOYMENT), "annotations": {"team": "own"}},
        "spec": {"replicas": 7},
    }
    operator.cluster.put(DEPLOYMENTS, edit, "kubectl-edit")
    await operator.reconcile()
    assert operator.body(DEPLOYMENT)["spec"]["replicas"] == 2
    assert operator.body(DEPLOYMENT)["metadata"]["annotations"]["team"] == "own"


async def test_a_deployment_that_somebody_pauses_is_resumed(operator: MemoryOperator) -> None:
    operator.serve()
    await operator.reconcile()
    pause = {"metadata": _meta(DEPLOYMENT), "spec": {"paused": True}}
    operator.cluster.put(DEPLOYMENTS, pause, "kubectl-rollout")
    await operator.reconcile()
    assert operator.body(DEPLOYMENT)["spec"]["paused"] is False


@pytest.mark.parametrize("kind", [DEPLOYMENTS, SERVICES, NETWORK_POLICIES, DISRUPTION_BUDGETS])
async def test_a_deleted_child_is_back_after_a_cycle(
    operator: MemoryOperator, kind: ApiResource
) -> None:
    operator.serve()
    await operator.reconcile()
    keys = [key for key in operator.cluster.objects if key.plural == kind.plural]
    assert keys
    for key in keys:
        await operator.cluster.delete(kind, key)
    await operator.reconcile()
    assert set(keys) <= operator.cluster.objects.keys()


async def test_a_restarted_operator_applies_all_once_and_then_nothing(
    operator: MemoryOperator,
) -> None:
    operator.serve()
    await operator.reconcile()
    await operator.reconcile()
    before = {key: dict(body) for key, body in operator.cluster.objects.items()}
    operator.restart()
    await operator.reconcile()
    assert (await operator.reconcile()).writes == 0
    assert operator.cluster.objects == before


async def test_after_a_restart_a_large_fleet_is_applied_bit_by_bit_and_what_is_touched_at_once(
    operator: MemoryOperator,
) -> None:
    names = [f"svc-{index:03d}" for index in range(2 * SERVICES_PER_CYCLE + 5)]
    for name in names:
        operator.serve(name, replicas=1)
    for _ in range(3):
        await operator.reconcile()
    operator.restart()
    operator.cluster.applied.clear()
    await operator.reconcile()
    services = {key.name for key in operator.cluster.applied if key.plural == SERVICES.plural}
    assert len(services) == SERVICES_PER_CYCLE
    touched = ObjectKey(SERVICES.plural, "team-a", names[-1])
    assert touched.name not in services
    operator.cluster.remove(touched, "spec", "selector")
    await operator.reconcile()
    assert operator.body(touched)["spec"]["selector"] == {"tessera.dev/service": names[-1]}
    await operator.reconcile()
    applied = {key.name for key in operator.cluster.applied if key.plural == SERVICES.plural}
    assert applied == set(names)
    assert (await operator.reconcile()).writes == 0


async def test_after_a_restart_what_was_edited_meanwhile_comes_first(
    operator: MemoryOperator,
) -> None:
    names = [f"svc-{index:03d}" for index in range(SERVICES_PER_CYCLE + 5)]
    for name in names:
        operator.serve(name, replicas=1)
    for _ in range(3):
        await operator.reconcile()
    last = operator.cluster.put(
        INFERENCE_SERVICES,
        {**_named(names[-1]), "spec": {"model": {"uri": SMALL}, "replicas": 2}},
    )
    operator.restart()
    await operator.reconcile()
    deployment = ObjectKey(DEPLOYMENTS.plural, "team-a", deployment_name(last.name, VARIANT))
    assert operator.body(deployment)["spec"]["replicas"] == 2


async def test_an_object_that_somebody_else_made_is_left_alone_and_named(
    operator: MemoryOperator,
) -> None:
    operator.serve()
    foreign = {"metadata": {**_meta(SERVICE)}, "spec": {"selector": {"app": "theirs"}}}
    operator.cluster.put(SERVICES, foreign, "helm")
    outcome = await operator.reconcile()
    assert operator.body(SERVICE)["spec"]["selector"] == {"app": "theirs"}
    assert "is managed by helm" in outcome.problems[Ref("team-a", "chat")]
    conditions = {
        condition["type"]: condition for condition in operator.body(CHAT)["status"]["conditions"]
    }
    assert conditions["Progressing"]["reason"] == "ApplyFailed"


async def test_the_refusal_of_one_service_stops_no_other(operator: MemoryOperator) -> None:
    operator.serve()
    operator.serve("mail")
    operator.cluster.refusals[SERVICE] = "apply services team-a/chat: 500 boom"
    outcome = await operator.reconcile()
    assert set(outcome.problems) == {Ref("team-a", "chat")}
    assert ObjectKey("services", "team-a", "mail") in operator.cluster.objects


async def test_a_budget_exists_only_from_two_replicas(operator: MemoryOperator) -> None:
    operator.serve(replicas=1)
    await operator.reconcile()
    assert "poddisruptionbudgets" not in operator.kinds()
    operator.serve(replicas=2)
    await operator.reconcile()
    assert "poddisruptionbudgets" in operator.kinds()
    operator.serve(replicas=1)
    await operator.reconcile()
    assert "poddisruptionbudgets" not in operator.kinds()


async def test_pod_monitors_are_made_only_where_their_kind_exists() -> None:
    for monitored in (False, True):
        operator = MemoryOperator(monitored=monitored)
        add_pool_and_node(operator)
        operator.serve()
        await operator.reconcile()
        assert ("podmonitors" in operator.kinds()) is monitored
        assert POD_MONITORS.watched is False


async def test_a_replica_takes_requests_once_its_gate_is_open(operator: MemoryOperator) -> None:
    operator.serve()
    await operator.reconcile()
    pod = operator.cluster.put(PODS, replica_of(DEPLOYMENT, "chat-0"))
    await operator.reconcile()
    (gate,) = operator.body(pod)["status"]["conditions"]
    assert (gate["type"], gate["status"]) == ("tessera.dev/serving", "True")


async def test_a_start_is_written_once_and_no_phase_of_it_before(
    operator: MemoryOperator,
) -> None:
    operator.serve(replicas=1)
    await operator.reconcile()
    body = replica_of(DEPLOYMENT, "chat-0")

    def put(started: str | None, *conditions: tuple[str, str]) -> None:
        state = {"running": {"startedAt": started}} if started else {"waiting": {}}
        kinds = [
            {"type": kind, "status": "True", "lastTransitionTime": at} for kind, at in conditions
        ]
        status = {
            "conditions": kinds,
            "containerStatuses": [{"name": "engine", "restartCount": 0, "state": state}],
        }
        operator.cluster.put(PODS, {**body, "status": status})

    bound = "PodScheduled", "2026-11-20T11:59:02Z"
    gate = "tessera.dev/serving", "2026-11-20T11:59:02Z"
    started = "2026-11-20T11:59:12Z"
    put(None, gate)
    await operator.reconcile()
    before = operator.body(CHAT)["status"]
    for phase in (None, bound, gate), (started, bound, gate):
        put(phase[0], *phase[1:])
        assert (await operator.reconcile()).writes == 0
    assert "start" not in before
    ready = [(kind, "2026-11-20T11:59:52Z") for kind in ("Ready", "ContainersReady")]
    put(started, bound, gate, *ready)
    await operator.reconcile()
    start = operator.body(CHAT)["status"]["start"]
    assert start == {
        "pod": "chat-0",
        "variant": VARIANT,
        "createdAt": "2026-11-20T11:59:00Z",
        "seconds": 52,
        "scheduleSeconds": 2,
        "imageSeconds": 10,
        "engineSeconds": 40,
    }
    put(started, bound, gate, ready[1])
    await operator.reconcile()
    put(started, bound, gate, ("Ready", "2026-11-20T11:59:59Z"), ready[1])
    await operator.reconcile()
    assert operator.body(CHAT)["status"]["start"] == start


def add_stalled_replica(operator: MemoryOperator) -> ObjectKey:
    """Add the only replica of a service, with requests in flight and no engine steps."""
    operator.serve(replicas=1)
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T11:31:00Z"}
        for kind in ("Ready", "ContainersReady", "tessera.dev/serving")
    ]
    status = {"podIP": "127.10.0.5", "conditions": conditions}
    ref = Ref("team-a", "chat-0")
    operator.observations.readings = Readings(
        at=NOW, engines={ref: EngineReading(steps=9.0, scraped_at=NOW)}
    )
    operator.memory = PlanMemory(
        engine_progress={ref: EngineProgress(steps=9.0, since=at(-130), busy_since=at(-125))}
    )
    operator.observations.answers.in_flight = {ref: InFlight(NOW, 2)}
    body = replica_of(DEPLOYMENT, "chat-0")
    body["metadata"]["creationTimestamp"] = "2026-11-20T11:30:00Z"
    return operator.cluster.put(PODS, {**body, "status": status})


async def test_a_stalled_replica_is_deleted_once_the_status_says_so(
    operator: MemoryOperator,
) -> None:
    pod = add_stalled_replica(operator)
    outcome = await operator.reconcile()
    assert pod not in operator.cluster.objects
    record = operator.body(CHAT)["status"]["replacement"]
    assert (record["pod"], record["at"]) == ("chat-0", "2026-11-20T12:00:00Z")
    assert "replaced with 2 requests in flight" in record["message"]
    reasons = {
        condition["type"]: condition["reason"]
        for condition in operator.body(CHAT)["status"]["conditions"]
    }
    assert reasons["Progressing"] == "EngineStalled"
    assert outcome.problems == {}


async def test_without_its_status_no_replica_is_deleted(operator: MemoryOperator) -> None:
    pod = add_stalled_replica(operator)
    operator.cluster.refusals[CHAT] = "the API server says no"
    await operator.reconcile()
    assert pod in operator.cluster.objects


async def test_a_new_leader_replaces_no_second_one_within_ten_minutes(
    operator: MemoryOperator,
) -> None:
    add_stalled_replica(operator)
    await operator.reconcile()
    operator.restart()
    pod = add_stalled_replica(operator)
    await operator.reconcile()
    assert pod in operator.cluster.objects
    conditions = {
        condition["type"]: condition for condition in operator.body(CHAT)["status"]["conditions"]
    }
    assert conditions["Progressing"]["reason"] == "EngineStalled"
    assert "chat-0 was replaced recently" in conditions["Progressing"]["message"]


async def test_a_process_that_does_not_lead_writes_nothing(operator: MemoryOperator) -> None:
    operator.serve()
    operator.leading = False
    with pytest.raises(NotLeadingError):
        await operator.reconcile()
    assert operator.cluster.applied == []


async def test_two_namespaces_share_nothing(operator: MemoryOperator) -> None:
    operator.serve()
    operator.serve(namespace="team-b")
    await operator.reconcile()
    owners = operator.body(ObjectKey("networkpolicies", "team-b", "tessera-engine"))["metadata"]
    assert [owner["name"] for owner in owners["ownerReferences"]] == ["chat"]
    assert ObjectKey("serviceaccounts", "team-b", "tessera-engine") in operator.cluster.objects


@pytest.mark.parametrize(
    ("access", "is_first"),
    [({}, False), ({"direct": False}, True)],
    ids=["further owner", "another policy"],
)
async def test_only_shared_objects_that_change_beyond_their_owners_delay_children(
    operator: MemoryOperator, access: dict[str, Any], *, is_first: bool
) -> None:
    operator.serve()
    await operator.reconcile()
    operator.cluster.applied.clear()
    operator.serve("code", access=access)
    await operator.reconcile()
    plurals = [key.plural for key in operator.cluster.applied]
    assert (plurals.index("networkpolicies") < plurals.index("deployments")) is is_first
    owners = operator.body(ObjectKey("networkpolicies", "team-a", "tessera-engine"))["metadata"]
    assert [owner["name"] for owner in owners["ownerReferences"]] == ["chat", "code"]
    operator.cluster.remove(
        ObjectKey("networkpolicies", "team-a", "tessera-engine"), "spec", "podSelector"
    )
    operator.serve("sum")
    operator.cluster.applied.clear()
    await operator.reconcile()
    plurals = [key.plural for key in operator.cluster.applied]
    assert plurals.index("networkpolicies") < plurals.index("deployments")


async def test_shared_objects_that_lost_all_their_owners_go_with_the_last_service(
    operator: MemoryOperator,
) -> None:
    operator.serve()
    await operator.reconcile()
    shared = ObjectKey("serviceaccounts", "team-a", "tessera-engine")
    for key in [key for key in operator.cluster.objects if key.name.startswith("chat")]:
        assert shared in operator.cluster.objects
        await operator.reconcile()
        del operator.cluster.objects[key]
    operator.cluster.put(SERVICE_ACCOUNTS, {"metadata": {"name": "theirs", "namespace": "team-a"}})
    await operator.reconcile()
    names = {key.name for key in operator.cluster.objects if key.namespace == "team-a"}
    assert names == {"theirs"}


async def test_what_was_spent_is_recorded_before_anything_that_costs(
    operator: MemoryOperator,
) -> None:
    spec = {
        "owner": "anna@example.org",
        "tenant": {"namespaces": ["team-a"]},
        "limits": [{"window": "Day", "amount": "100"}],
    }
    budget = operator.cluster.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": spec})
    operator.serve()
    await operator.reconcile()
    assert operator.cluster.applied.index(budget) < operator.cluster.applied.index(DEPLOYMENT)
    assert operator.body(budget)["status"]["spend"]["windows"][0]["spent"] == "0"
    assert operator.body(CHAT)["status"]["tenant"] == {"budget": "team-a", "reason": "WithinLimits"}
    operator.cluster.applied.clear()
    await operator.reconcile()
    assert operator.cluster.applied == []


async def test_the_status_of_a_batch_is_written_before_its_job(operator: MemoryOperator) -> None:
    batch = add_batch(operator)
    outcome = await operator.reconcile()
    check = ObjectKey("jobs", "team-a", "night-check")
    assert operator.cluster.applied.index(batch) < operator.cluster.applied.index(check)
    assert operator.body(batch)["status"]["state"] == "validating"
    assert {"tessera-batch", "tessera-engine"} == {
        key.name for key in operator.cluster.objects if key.plural == "serviceaccounts"
    }
    telemetry = Telemetry()
    telemetry.record_reconcile(outcome, 0.1)
    metrics = telemetry.exposition().decode()
    assert (
        'tessera_batch_state{batch="night",namespace="team-a",reason="ValidationJobRunning"'
        in metrics
    )


async def test_without_its_status_no_job_of_a_batch_is_created(operator: MemoryOperator) -> None:
    batch = add_batch(operator)
    operator.cluster.refusals[batch] = "the API server says no"
    await operator.reconcile()
    assert ObjectKey("jobs", "team-a", "night-check") not in operator.cluster.objects


async def test_shared_objects_go_when_the_last_batch_of_a_namespace_is_over(
    operator: MemoryOperator,
) -> None:
    batch = add_batch(operator)
    await operator.reconcile()
    assert {"serviceaccounts", "rolebindings", "networkpolicies"} <= operator.kinds()
    operator.body(batch)["status"]["state"] = "completed"
    operator.cluster.touch(batch)
    await operator.reconcile()
    assert not {"serviceaccounts", "rolebindings", "networkpolicies"} & operator.kinds()
    operator.cluster.applied.clear()
    await operator.reconcile()
    assert operator.cluster.applied == []


async def test_a_refused_job_is_explained_by_the_next_cycle(operator: MemoryOperator) -> None:
    batch = add_batch(operator)
    await operator.reconcile()
    body = operator.body(batch)
    check = {"rows": 10, "url": "/v1/completions", "inputTokens": 5}
    body["status"] |= {"check": check, "progress": {"rows": 10, "at": "2026-11-20T12:00:00Z"}}
    operator.cluster.touch(batch)
    refused = ObjectKey("jobs", "team-a", "night-a1")
    operator.cluster.refusals[refused] = "exceeded quota: small"
    await operator.reconcile()
    await operator.reconcile()
    status = operator.body(batch)["status"]
    assert status["reason"] == "BackingOff"
    assert (
        status["attempt"]["terminationMessage"]
        == "the API server refused its Job: exceeded quota: small"
    )
    assert status["message"].count("exceeded quota: small") == 1
    operator.cluster.applied.clear()
    await operator.reconcile()
    assert operator.cluster.applied == []


async def test_a_change_during_a_cycle_costs_exactly_one_more() -> None:
    wakes, cycles = Wakes(), list[int]()

    async def count_cycle() -> Rest:
        cycles.append(len(cycles))
        if len(cycles) == 1:
            wakes.change()
            wakes.change()
        if len(cycles) == 3:
            raise RuntimeError("enough")
        return Rest()

    wakes.change()
    with pytest.raises(RuntimeError, match="enough"):
        async with asyncio.timeout(60):
            await run_loop(wakes, count_cycle, period=0.02, min_interval=0.001)
    assert cycles == [0, 1, 2]


@contextlib.asynccontextmanager
async def resting_loop(
    monkeypatch: pytest.MonkeyPatch, backlog: Backlog
) -> AsyncIterator[tuple[Wakes, asyncio.Queue[None]]]:
    """Run a loop that rests for long after its first cycle, with a queue of its further ones."""
    monkeypatch.setattr(loop, "MAX_REST", 1000.0)
    monkeypatch.setattr(loop, "MAX_BURST_REST", 1000.0)
    wakes, cycles = Wakes(), asyncio.Queue[None]()

    async def count_cycle() -> Rest:
        await cycles.put(None)
        return rest_after(500.0, backlog)._replace(shortest=0.0)

    running = asyncio.create_task(run_loop(wakes, count_cycle, period=2000.0, min_interval=0.001))
    try:
        async with asyncio.timeout(60):
            await cycles.get()
        yield wakes, cycles
        async with asyncio.timeout(60):
            await cycles.get()
    finally:
        running.cancel()


async def test_an_edit_ends_a_long_rest_and_another_change_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with resting_loop(monkeypatch, Backlog.NONE) as (wakes, cycles):
        for kind in (PODS, DEPLOYMENTS):
            wakes.observe(kind)
        wakes.change()
        await asyncio.sleep(0.05)
        assert cycles.empty()
        wakes.observe(INFERENCE_SERVICES)


async def test_in_a_burst_an_edit_waits_until_few_objects_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with resting_loop(monkeypatch, Backlog.OBJECTS) as (wakes, cycles):
        wakes.observe(INFERENCE_SERVICES)
        await asyncio.sleep(0.05)
        assert cycles.empty()
        wakes.end_burst()


def test_an_edit_is_not_planned_at_once_while_many_objects_wait() -> None:
    calm, late, burst = (rest_after(0.1, backlog) for backlog in Backlog)
    assert calm.shortest == late.shortest < calm.longest < burst.shortest < burst.longest
    assert late.longest == burst.longest


def _meta(key: ObjectKey) -> dict[str, str]:
    return {"name": key.name, "namespace": key.namespace}


async def test_an_unknown_model_is_read_by_a_job_and_placed_by_what_it_left(
    operator: MemoryOperator,
) -> None:
    own = operator.serve(model={"uri": "hf://acme/own"})
    await operator.reconcile()
    (job,) = [key for key in operator.cluster.objects if key.plural == JOBS.plural]
    assert ObjectKey("serviceaccounts", "team-a", "tessera-engine") in operator.cluster.objects
    operator.cluster.put(PODS, _read_pod(job, operator.body(job)))
    await operator.reconcile()
    assert operator.body(own)["status"]["model"]["shape"]["layers"] == 2
    assert DEPLOYMENT in operator.cluster.objects
    await operator.reconcile()
    assert job not in operator.cluster.objects
    assert (await operator.reconcile()).writes == 0


async def test_a_job_that_was_lost_before_it_was_done_is_created_again(
    operator: MemoryOperator,
) -> None:
    operator.serve(model={"uri": "hf://acme/own"})
    await operator.reconcile()
    await operator.reconcile()
    assert (await operator.reconcile()).writes == 0
    (job,) = [key for key in operator.cluster.objects if key.plural == JOBS.plural]
    del operator.cluster.objects[job]
    await operator.reconcile()
    assert job in operator.cluster.objects


@pytest.mark.parametrize("refused", [("jobs", "night-check"), ("rolebindings", "tessera-batch")])
async def test_a_refused_object_of_a_batch_is_reported_and_tried_again(
    operator: MemoryOperator, refused: tuple[str, str]
) -> None:
    batch = add_batch(operator)
    key = ObjectKey(refused[0], "team-a", refused[1])
    check = ObjectKey(JOBS.plural, "team-a", "night-check")
    operator.cluster.refusals[key] = "apply: 422 the policy of the cluster denies it"
    for _ in range(3):
        await operator.reconcile()
    status = operator.body(batch)["status"]
    assert status["reason"] == "ApplyFailed"
    assert status["message"].startswith("apply: 422 the policy of the cluster denies it; ")
    assert check not in operator.cluster.objects
    del operator.cluster.refusals[key]
    for _ in range(2):
        await operator.reconcile()
    assert check in operator.cluster.objects
    assert operator.body(batch)["status"]["reason"] == "ValidationJobRunning"


async def test_a_refused_model_job_is_reported_and_tried_again(
    operator: MemoryOperator,
) -> None:
    own = operator.serve(model={"uri": "hf://acme/own"})
    spec = InferenceServiceSpec.model_validate({"model": {"uri": "hf://acme/own"}})
    uid = operator.body(own)["metadata"]["uid"]
    job = ObjectKey(JOBS.plural, "team-a", model_job_name("chat", uid, "shape", spec.model))
    operator.cluster.refusals[job] = "exceeded quota: small"
    await operator.reconcile()
    await operator.reconcile()
    reason, message = _progressing(operator.body(own))
    assert (reason, message.partition(". ")[0]) == ("ApplyFailed", "exceeded quota: small")
    del operator.cluster.refusals[job]
    await operator.reconcile()
    await operator.reconcile()
    assert job in operator.cluster.objects
    assert _progressing(operator.body(own))[0] == "NotPlaced"


def _progressing(body: dict[str, Any]) -> tuple[str, str]:
    (condition,) = [
        condition
        for condition in body["status"]["conditions"]
        if condition["type"] == "Progressing"
    ]
    return condition["reason"], condition["message"]


def _read_pod(key: ObjectKey, job: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a Job that has read a small model."""
    shape = {
        "parameters": 8_000_000,
        "layers": 2,
        "attentionHeads": 4,
        "kvHeads": 2,
        "headDim": 32,
        "maxPositionEmbeddings": 2048,
    }
    report = json.dumps({"phase": "shape", "ok": True, "shape": shape})
    ended = {"exitCode": 0, "message": report, "finishedAt": NOW.isoformat()}
    return {
        "metadata": {
            "name": f"{key.name}-x",
            "namespace": key.namespace,
            "creationTimestamp": NOW.isoformat(),
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}],
        },
        "status": {"containerStatuses": [{"state": {"terminated": ended}}]},
    }


PULLS = ObjectKey("daemonsets", "tessera-system-prepull", "tessera-prepull-a100-vllm")


def set_pre_pull(operator: MemoryOperator, *, wanted: bool) -> None:
    """Edit the pool as the platform team."""
    pool = ObjectKey("acceleratorpools", "", "a100")
    spec = {**operator.body(pool)["spec"], "prePull": wanted}
    operator.cluster.put(ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": spec})


async def test_a_pool_that_asks_for_it_gets_its_images_pulled_ahead(
    operator: MemoryOperator,
) -> None:
    set_pre_pull(operator, wanted=True)
    operator.serve(engine={"image": "acme/vllm:1"}, replicas=1)
    await operator.reconcile()
    pulls = PULLS._replace(name="tessera-prepull-a100-tenants")
    pod = operator.body(pulls)["spec"]["template"]["spec"]
    assert [container["image"] for container in pod["containers"]] == ["acme/vllm:1"]
    assert pod["nodeSelector"] == {"pool": "a100"}
    await operator.reconcile()
    assert (await operator.reconcile()).writes == 0


async def test_images_are_pulled_ahead_only_as_long_as_the_pool_asks_for_it(
    operator: MemoryOperator,
) -> None:
    set_pre_pull(operator, wanted=True)
    await operator.reconcile()
    assert PULLS in operator.cluster.objects
    set_pre_pull(operator, wanted=False)
    await operator.reconcile()
    assert PULLS not in operator.cluster.objects


async def test_an_edit_does_not_wait_for_what_an_earlier_plan_left_to_write(
    operator: MemoryOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_order, "BURST_STATUS_DELAY_SECONDS", 0.0)
    names = [f"chat-{index:03}" for index in range(200)]
    keys = [operator.serve(name, replicas=1) for name in names]
    await operator.reconcile()
    for name in names:
        operator.serve(name, replicas=2)
    applied, before = operator.cluster.applied, len(operator.cluster.applied)
    await operator.decide()
    writing = asyncio.create_task(operator.applier.queue.run())

    async def until_written(*kinds: ApiResource, count: int) -> None:
        plurals = {kind.plural for kind in kinds}
        async with asyncio.timeout(60):
            while sum(key.plural in plurals for key in applied[before:]) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)

    await until_written(DEPLOYMENTS, count=len(names))
    statuses_written = [key for key in applied[before:] if key.plural == INFERENCE_SERVICES.plural]
    assert len(statuses_written) < len(names) // 10
    await until_written(INFERENCE_SERVICES, count=20)
    operator.serve("edited", replicas=1)
    await operator.decide()
    decided = len(applied)
    deployment = ObjectKey(DEPLOYMENTS.plural, "team-a", deployment_name("edited", VARIANT))
    await until_written(DEPLOYMENTS, count=len(names) + 1)
    assert applied.index(deployment) < decided + len(names) // 2
    writing.cancel()
    await operator.reconcile()
    statuses = [operator.body(key)["status"] for key in keys]
    assert {status["scaling"]["desiredReplicas"] for status in statuses} == {2}


async def test_objects_are_applied_before_the_gates_of_other_services_open(
    operator: MemoryOperator,
) -> None:
    operator.serve(replicas=1)
    await operator.reconcile()
    pod = operator.cluster.put(PODS, replica_of(DEPLOYMENT, "chat-0"))
    operator.serve("later", replicas=1)
    operator.cluster.applied.clear()
    await operator.reconcile()
    later = ObjectKey(DEPLOYMENTS.plural, "team-a", deployment_name("later", VARIANT))
    assert operator.cluster.applied.index(later) < operator.cluster.applied.index(pod)


async def test_inputs_of_deleted_services_are_forgotten(operator: MemoryOperator) -> None:
    async def come_and_go(name: str) -> None:
        operator.serve(name)
        await operator.reconcile()
        await operator.reconcile()
        for key in [key for key in operator.cluster.objects if name in key.name]:
            await operator.cluster.delete(INFERENCE_SERVICES, key)
        await operator.reconcile()
        operator.cluster.forget_the_past()

    operator.serve("stays")
    for index in range(3):
        await come_and_go(f"first-{index}")
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(20):
            await come_and_go(f"later-{index}")
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 20 < 8000, "bytes for each service that came and went"
