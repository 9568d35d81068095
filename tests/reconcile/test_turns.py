"""Whole turns against an in-memory cluster."""

import asyncio
import gc
import json
import tracemalloc
from datetime import datetime, timedelta
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.recipe import Platform
from tessera.domain.model.names import model_job_name
from tessera.domain.names import deployment_name
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import (
    EngineProgress,
    EngineReading,
    InFlight,
    Readings,
    Ref,
    Resolution,
    RevisionQuery,
)
from tessera.ports import ModelHub
from tessera.reconcile.apply import Applier, NotLeadingError
from tessera.reconcile.cycle import FleetReconciler, ReconcileOutcome
from tessera.reconcile.loop import run_loop
from tessera.reconcile.observe import Observations
from tessera.reconcile.prober import Prober
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.startup_resync import SERVICES_PER_CYCLE
from tessera.reconcile.store import Store
from tessera.resources.api_resources import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    CLAIMS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    INFERENCE_SERVICES,
    JOBS,
    KINDS,
    NETWORK_POLICIES,
    NODES,
    POD_MONITORS,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    TENANT_BUDGETS,
    ApiResource,
)
from tessera.resources.batch_job import RunnerImage
from tessera.resources.manifest import ObjectKey
from tessera.telemetry import Telemetry
from tests.builders import NOW, SMALL, at
from tests.memory_cluster import MemoryCluster

VARIANT = "a100-1g-10gb"
DEPLOYMENT = ObjectKey("deployments", "team-a", deployment_name("chat", VARIANT))
SERVICE = ObjectKey("services", "team-a", "chat")
CHAT = ObjectKey("inferenceservices", "team-a", "chat")


class SilentEngines:
    """Engines that nobody has started."""

    async def probe(self, base: str, model: str) -> str | None:
        return f"POST {base} for {model}: connection refused"

    async def in_flight(self, address: str) -> int | None:
        del address
        return 0

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        del address
        return None

    async def progress(self, address: str) -> RunnerProgress | None:
        del address
        return None


class World:
    """An operator over an in-memory cluster, turned by hand."""

    def __init__(self, *, monitored: bool = False, hub: ModelHub | None = None) -> None:
        self.cluster = MemoryCluster(monitored=monitored)
        self.leading = True
        self.hub = hub
        self.answered = asyncio.Event()
        self.builder = 1
        self.platform = Platform()
        self.at = NOW
        self.senses = Observations()
        self.restart()

    def restart(self) -> None:
        """A new process: everything that was in memory is gone."""
        resolutions: dict[RevisionQuery, Resolution] | None = None if self.hub is None else {}
        self.senses = Observations(
            builder_version=self.builder, platform=self.platform, resolutions=resolutions
        )
        self._store = Store(KINDS)
        applier = Applier(
            self.cluster,
            self._store,
            ingress_namespaces=("tessera-system", "monitoring"),
            batch_image=RunnerImage("tessera/batch:test"),
            is_leader=lambda: self.leading,
        )
        asker = Prober(SilentEngines(), self.senses, self._now, self.answered.set, self.hub)
        self._fleet = FleetReconciler(self._store, self.senses, applier, asker, self._now)
        self._mirror = Reflector(self.cluster, self._store, self.senses, lambda: None)

    def _now(self) -> datetime:
        return self.at

    async def turn(self, *, hurried: bool = False) -> ReconcileOutcome:
        """List everything, as after any event, and take a turn."""
        await self._mirror.list_all()
        return await self._fleet.reconcile(lambda: hurried)

    def serve(self, name: str = "chat", namespace: str = "team-a", **spec: Any) -> ObjectKey:
        body = {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": {"uri": SMALL}, **spec},
        }
        return self.cluster.put(INFERENCE_SERVICES, body)

    def body(self, key: ObjectKey) -> dict[str, Any]:
        return self.cluster.objects[key]

    def kinds(self) -> set[str]:
        return {key.plural for key in self.cluster.objects}


@pytest.fixture
def world() -> World:
    made = World()
    stock(made)
    return made


def stock(world: World) -> None:
    """One A100 in seven slices, and its pool."""
    prices = [{"from": "2026-01-01", "perGPUHour": "2"}]
    pool = {"nodeSelector": {"pool": "a100"}, "tier": "reserved", "prices": prices}
    world.cluster.put(ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": pool})
    labels = {
        "pool": "a100",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.count": "1",
    }
    status = {
        "allocatable": {"nvidia.com/mig-1g.10gb": "7"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    world.cluster.put(NODES, {"metadata": {"name": "a100-0", "labels": labels}, "status": status})


def _named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team-a"}}


def batched(world: World) -> ObjectKey:
    """A batch with the claim that it names."""
    claim = {
        "metadata": {"name": "data", "namespace": "team-a"},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }
    world.cluster.put(CLAIMS, claim)
    meta = {
        "name": "night",
        "namespace": "team-a",
        "creationTimestamp": "2026-11-20T11:59:00Z",
    }
    spec = {"claim": "data", "input": "in.jsonl", "output": "out.jsonl", "model": {"uri": SMALL}}
    return world.cluster.put(BATCH_INFERENCES, {"metadata": meta, "spec": spec})


async def test_a_service_gets_all_its_objects_in_one_turn(world: World) -> None:
    world.serve()
    await world.turn()
    made = {DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS, NETWORK_POLICIES, DISRUPTION_BUDGETS}
    assert {kind.plural for kind in made} <= world.kinds()
    assert world.body(DEPLOYMENT)["spec"]["replicas"] == 2
    told = {one["type"]: one["reason"] for one in world.body(CHAT)["status"]["conditions"]}
    assert told["Placed"] == "Placed"


async def test_an_unchanged_fleet_costs_no_write(world: World) -> None:
    world.serve()
    await world.turn()
    await world.turn()
    assert (await world.turn()).writes == 0


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
async def test_a_field_removed_by_hand_is_back_after_a_turn(
    world: World, key: ObjectKey, path: tuple[str, ...]
) -> None:
    world.serve()
    await world.turn()
    before = dict(world.body(key))
    world.cluster.remove(key, *path)
    await world.turn()
    assert world.body(key) == before


async def test_what_is_spoiled_again_in_the_same_way_right_after_its_repair_is_repaired_again(
    world: World,
) -> None:
    """No turn sees the Service as repaired, so one turn after another meets the same."""
    world.serve(replicas=0)

    async def turn() -> None:
        world.at += timedelta(seconds=5)
        await world.turn()

    for _ in range(3):  # nothing moves any more, so its plan is kept
        await turn()
    before = dict(world.body(SERVICE)["spec"])
    for _ in range(3):
        world.cluster.remove(SERVICE, "spec", "selector")
        await turn()
        assert world.body(SERVICE)["spec"] == before


async def test_a_field_changed_by_hand_is_back_and_foreign_fields_stay(world: World) -> None:
    world.serve()
    await world.turn()
    edit = {
        "metadata": {**_meta(DEPLOYMENT), "annotations": {"team": "own"}},
        "spec": {"replicas": 7},
    }
    world.cluster.put(DEPLOYMENTS, edit, "kubectl-edit")
    await world.turn()
    assert world.body(DEPLOYMENT)["spec"]["replicas"] == 2
    assert world.body(DEPLOYMENT)["metadata"]["annotations"] == {"team": "own"}


@pytest.mark.parametrize("kind", [DEPLOYMENTS, SERVICES, NETWORK_POLICIES, DISRUPTION_BUDGETS])
async def test_a_deleted_child_is_back_after_a_turn(world: World, kind: ApiResource) -> None:
    world.serve()
    await world.turn()
    (key,) = [key for key in world.cluster.objects if key.plural == kind.plural]
    await world.cluster.delete(kind, key)
    await world.turn()
    assert key in world.cluster.objects


async def test_a_restarted_operator_applies_all_once_and_then_nothing(world: World) -> None:
    world.serve()
    await world.turn()
    await world.turn()
    before = {key: dict(body) for key, body in world.cluster.objects.items()}
    world.restart()
    await world.turn()
    assert (await world.turn()).writes == 0
    assert world.cluster.objects == before


async def test_after_a_restart_a_large_fleet_is_applied_bit_by_bit_and_what_is_touched_at_once(
    world: World,
) -> None:
    names = [f"svc-{index:03d}" for index in range(2 * SERVICES_PER_CYCLE + 5)]
    for name in names:
        world.serve(name, replicas=1)
    for _ in range(3):
        await world.turn()
    world.restart()
    world.cluster.applied.clear()
    await world.turn()
    services = {key.name for key in world.cluster.applied if key.plural == SERVICES.plural}
    assert len(services) == SERVICES_PER_CYCLE
    touched = ObjectKey(SERVICES.plural, "team-a", names[-1])
    assert touched.name not in services
    world.cluster.remove(touched, "spec", "selector")
    await world.turn()
    assert world.body(touched)["spec"]["selector"] == {"tessera.dev/service": names[-1]}
    await world.turn()
    applied = {key.name for key in world.cluster.applied if key.plural == SERVICES.plural}
    assert applied == set(names)
    assert (await world.turn()).writes == 0


async def test_after_a_restart_what_was_edited_meanwhile_comes_first(world: World) -> None:
    names = [f"svc-{index:03d}" for index in range(SERVICES_PER_CYCLE + 5)]
    for name in names:
        world.serve(name, replicas=1)
    for _ in range(3):
        await world.turn()
    last = world.cluster.put(
        INFERENCE_SERVICES,
        {**_named(names[-1]), "spec": {"model": {"uri": SMALL}, "replicas": 2}},
    )
    world.restart()
    await world.turn()
    made = ObjectKey(DEPLOYMENTS.plural, "team-a", deployment_name(last.name, VARIANT))
    assert world.body(made)["spec"]["replicas"] == 2


async def test_an_object_that_somebody_else_made_is_left_alone_and_named(world: World) -> None:
    world.serve()
    foreign = {"metadata": {**_meta(SERVICE)}, "spec": {"selector": {"app": "theirs"}}}
    world.cluster.put(SERVICES, foreign, "helm")
    outcome = await world.turn()
    assert world.body(SERVICE)["spec"]["selector"] == {"app": "theirs"}
    assert "was made by helm" in outcome.problems[Ref("team-a", "chat")]
    told = {one["type"]: one for one in world.body(CHAT)["status"]["conditions"]}
    assert told["Progressing"]["reason"] == "ApplyFailed"


async def test_the_refusal_of_one_service_stops_no_other(world: World) -> None:
    world.serve()
    world.serve("mail")
    world.cluster.refusals[SERVICE] = "apply services team-a/chat: 500 boom"
    outcome = await world.turn()
    assert set(outcome.problems) == {Ref("team-a", "chat")}
    assert ObjectKey("services", "team-a", "mail") in world.cluster.objects


async def test_a_budget_exists_only_from_two_replicas(world: World) -> None:
    world.serve(replicas=1)
    await world.turn()
    assert "poddisruptionbudgets" not in world.kinds()
    world.serve(replicas=2)
    await world.turn()
    assert "poddisruptionbudgets" in world.kinds()
    world.serve(replicas=1)
    await world.turn()
    assert "poddisruptionbudgets" not in world.kinds()


async def test_pod_monitors_are_made_only_where_their_kind_exists() -> None:
    for monitored in (False, True):
        world = World(monitored=monitored)
        stock(world)
        world.serve()
        await world.turn()
        assert ("podmonitors" in world.kinds()) is monitored
        assert POD_MONITORS.watched is False


async def test_a_replica_takes_requests_once_its_gate_is_open(world: World) -> None:
    world.serve()
    await world.turn()
    labels = world.body(DEPLOYMENT)["metadata"]["labels"]
    meta = {
        "name": "chat-0",
        "namespace": "team-a",
        "labels": labels,
        "creationTimestamp": "2026-11-20T11:59:00Z",
    }
    pod = world.cluster.put(PODS, {"metadata": meta})
    await world.turn()
    (gate,) = world.body(pod)["status"]["conditions"]
    assert (gate["type"], gate["status"]) == ("tessera.dev/serving", "True")


def frozen(world: World) -> ObjectKey:
    """The only replica of a service holds requests, and its engine takes no step."""
    world.serve(replicas=1)
    labels = {"tessera.dev/service": "chat", "tessera.dev/variant": VARIANT}
    meta = {
        "name": "chat-0",
        "namespace": "team-a",
        "labels": {"app.kubernetes.io/component": "engine", **labels},
        "creationTimestamp": "2026-11-20T11:30:00Z",
    }
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T11:31:00Z"}
        for kind in ("Ready", "ContainersReady", "tessera.dev/serving")
    ]
    status = {"podIP": "127.10.0.5", "conditions": conditions}
    ref = Ref("team-a", "chat-0")
    world.senses.readings = Readings(
        at=NOW, engines={ref: EngineReading(steps=9.0, scraped_at=NOW)}
    )
    world.senses.engine_progress = {
        ref: EngineProgress(steps=9.0, since=at(-130), busy_since=at(-125))
    }
    world.senses.in_flight = {ref: InFlight(NOW, 2)}
    return world.cluster.put(PODS, {"metadata": meta, "status": status})


async def test_a_stalled_replica_is_deleted_once_the_status_says_so(world: World) -> None:
    pod = frozen(world)
    outcome = await world.turn()
    assert pod not in world.cluster.objects
    record = world.body(CHAT)["status"]["replacement"]
    assert (record["pod"], record["at"]) == ("chat-0", "2026-11-20T12:00:00Z")
    assert "it is replaced (2 in flight)" in record["message"]
    told = {one["type"]: one["reason"] for one in world.body(CHAT)["status"]["conditions"]}
    assert told["Progressing"] == "EngineStalled"
    assert outcome.problems == {}


async def test_without_its_status_no_replica_is_deleted(world: World) -> None:
    pod = frozen(world)
    world.cluster.refusals[CHAT] = "the API server says no"
    await world.turn()
    assert pod in world.cluster.objects


async def test_a_new_leader_replaces_no_second_one_within_ten_minutes(world: World) -> None:
    frozen(world)
    await world.turn()
    world.restart()
    pod = frozen(world)
    await world.turn()
    assert pod in world.cluster.objects
    conditions = {one["type"]: one for one in world.body(CHAT)["status"]["conditions"]}
    assert conditions["Progressing"]["reason"] == "EngineStalled"
    assert "chat-0 was replaced before" in conditions["Progressing"]["message"]


async def test_a_process_that_does_not_lead_writes_nothing(world: World) -> None:
    world.serve()
    world.leading = False
    with pytest.raises(NotLeadingError):
        await world.turn()
    assert world.cluster.applied == []


async def test_two_namespaces_share_nothing(world: World) -> None:
    world.serve()
    world.serve(namespace="team-b")
    await world.turn()
    owners = world.body(ObjectKey("networkpolicies", "team-b", "tessera-engine"))["metadata"]
    assert [one["name"] for one in owners["ownerReferences"]] == ["chat"]
    assert ObjectKey("serviceaccounts", "team-b", "tessera-engine") in world.cluster.objects


async def test_shared_objects_that_lost_all_their_owners_go_with_the_last_service(
    world: World,
) -> None:
    world.serve()
    await world.turn()
    shared = ObjectKey("serviceaccounts", "team-a", "tessera-engine")
    for key in [key for key in world.cluster.objects if key.name.startswith("chat")]:
        assert shared in world.cluster.objects
        await world.turn()
        del world.cluster.objects[key]
    world.cluster.put(SERVICE_ACCOUNTS, {"metadata": {"name": "theirs", "namespace": "team-a"}})
    await world.turn()
    left = {key.name for key in world.cluster.objects if key.namespace == "team-a"}
    assert left == {"theirs"}


async def test_what_was_spent_is_recorded_before_anything_that_costs(world: World) -> None:
    spec = {
        "owner": "anna@example.org",
        "tenant": {"namespaces": ["team-a"]},
        "limits": [{"window": "day", "amount": "100"}],
    }
    budget = world.cluster.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": spec})
    world.serve()
    await world.turn()
    assert world.cluster.applied.index(budget) < world.cluster.applied.index(DEPLOYMENT)
    assert world.body(budget)["status"]["spend"]["windows"][0]["settled"] == "0"
    assert world.body(CHAT)["status"]["tenant"] == {"budget": "team-a", "state": "WithinLimits"}
    world.cluster.applied.clear()
    await world.turn()
    assert world.cluster.applied == []


async def test_the_status_of_a_batch_is_written_before_its_job(world: World) -> None:
    batch = batched(world)
    outcome = await world.turn()
    check = ObjectKey("jobs", "team-a", "night-check")
    assert world.cluster.applied.index(batch) < world.cluster.applied.index(check)
    assert world.body(batch)["status"]["state"] == "validating"
    assert {"tessera-batch", "tessera-engine"} == {
        key.name for key in world.cluster.objects if key.plural == "serviceaccounts"
    }
    telemetry = Telemetry()
    telemetry.record_reconcile(outcome, 0.1, 0.1)
    metrics = telemetry.exposition().decode()
    assert 'tessera_batch_state{batch="night",namespace="team-a",reason="Checking"' in metrics


async def test_without_its_status_no_job_of_a_batch_is_created(world: World) -> None:
    batch = batched(world)
    world.cluster.refusals[batch] = "the API server says no"
    await world.turn()
    assert ObjectKey("jobs", "team-a", "night-check") not in world.cluster.objects


async def test_shared_objects_go_when_the_last_batch_of_a_namespace_is_over(world: World) -> None:
    batch = batched(world)
    await world.turn()
    assert {"serviceaccounts", "rolebindings", "networkpolicies"} <= world.kinds()
    world.body(batch)["status"]["state"] = "completed"
    await world.turn()
    assert not {"serviceaccounts", "rolebindings", "networkpolicies"} & world.kinds()
    world.cluster.applied.clear()
    await world.turn()
    assert world.cluster.applied == []


async def test_a_refused_job_tells_the_next_turn_why(world: World) -> None:
    batch = batched(world)
    await world.turn()
    body = world.body(batch)
    check = {"rows": 10, "url": "/v1/completions", "inputTokens": 5}
    body["status"] |= {"check": check, "progress": {"rows": 10, "at": "2026-11-20T12:00:00Z"}}
    refused = ObjectKey("jobs", "team-a", "night-a1")
    world.cluster.refusals[refused] = "exceeded quota: small"
    await world.turn()
    await world.turn()
    status = world.body(batch)["status"]
    assert status["reason"] == "BackingOff"
    assert status["attempt"]["lastWords"] == "its Job was refused: exceeded quota: small"
    assert status["message"].count("exceeded quota: small") == 1
    world.cluster.applied.clear()
    await world.turn()
    assert world.cluster.applied == []


async def test_a_change_during_a_turn_costs_exactly_one_more() -> None:
    changed, turns = asyncio.Event(), list[int]()

    async def turn() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            changed.set()
            changed.set()
        if len(turns) == 3:
            raise RuntimeError("enough")

    changed.set()
    with pytest.raises(RuntimeError, match="enough"):
        async with asyncio.timeout(5):
            await run_loop(changed, turn, period=0.02, min_interval=0.001)
    assert turns == [0, 1, 2]


def _meta(key: ObjectKey) -> dict[str, str]:
    return {"name": key.name, "namespace": key.namespace}


async def test_an_unknown_model_is_read_by_a_job_and_placed_by_what_it_left(world: World) -> None:
    own = world.serve(model={"uri": "hf://acme/own"})
    await world.turn()
    (job,) = [key for key in world.cluster.objects if key.plural == JOBS.plural]
    assert ObjectKey("serviceaccounts", "team-a", "tessera-engine") in world.cluster.objects
    world.cluster.put(PODS, _read_pod(job, world.body(job)))
    await world.turn()
    assert world.body(own)["status"]["model"]["shape"]["layers"] == 2
    assert DEPLOYMENT in world.cluster.objects
    await world.turn()
    assert job not in world.cluster.objects
    assert (await world.turn()).writes == 0


async def test_a_job_that_was_lost_before_it_was_done_is_made_anew(world: World) -> None:
    world.serve(model={"uri": "hf://acme/own"})
    await world.turn()
    await world.turn()
    assert (await world.turn()).writes == 0
    (job,) = [key for key in world.cluster.objects if key.plural == JOBS.plural]
    del world.cluster.objects[job]
    await world.turn()
    assert job in world.cluster.objects


async def test_a_job_of_a_model_that_was_refused_is_told_and_tried_again(world: World) -> None:
    own = world.serve(model={"uri": "hf://acme/own"})
    spec = InferenceServiceSpec.model_validate({"model": {"uri": "hf://acme/own"}})
    uid = world.body(own)["metadata"]["uid"]
    job = ObjectKey(JOBS.plural, "team-a", model_job_name("chat", uid, "shape", spec.model))
    world.cluster.refusals[job] = "exceeded quota: small"
    await world.turn()
    await world.turn()
    assert _progressing(world.body(own)) == ("ApplyFailed", "exceeded quota: small")
    del world.cluster.refusals[job]
    await world.turn()
    await world.turn()
    assert job in world.cluster.objects
    assert _progressing(world.body(own))[0] == "NotPlaced"


def _progressing(body: dict[str, Any]) -> tuple[str, str]:
    (found,) = [one for one in body["status"]["conditions"] if one["type"] == "Progressing"]
    return found["reason"], found["message"]


def _read_pod(key: ObjectKey, job: dict[str, Any]) -> dict[str, Any]:
    """The pod of a Job that has read a small model."""
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
            "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
        },
        "status": {"containerStatuses": [{"state": {"terminated": ended}}]},
    }


PULLS = ObjectKey("daemonsets", "tessera-system", "tessera-prepull-a100")


def pull_ahead(world: World, *, wanted: bool) -> None:
    """The platform team edits the pool."""
    pool = ObjectKey("acceleratorpools", "", "a100")
    spec = {**world.body(pool)["spec"], "prePull": wanted}
    world.cluster.put(ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": spec})


async def test_a_pool_that_asks_for_it_gets_its_images_pulled_ahead(world: World) -> None:
    pull_ahead(world, wanted=True)
    world.serve(engine={"image": "acme/vllm:1"})
    await world.turn()
    pod = world.body(PULLS)["spec"]["template"]["spec"]
    assert [one["image"] for one in pod["containers"]] == ["acme/vllm:1"]
    assert pod["nodeSelector"] == {"pool": "a100"}
    await world.turn()
    assert (await world.turn()).writes == 0


async def test_images_are_pulled_ahead_only_as_long_as_the_pool_asks_for_it(world: World) -> None:
    pull_ahead(world, wanted=True)
    await world.turn()
    assert PULLS in world.cluster.objects
    pull_ahead(world, wanted=False)
    await world.turn()
    assert PULLS not in world.cluster.objects


async def test_in_a_hurry_objects_come_before_statuses_and_nobody_is_forgotten(
    world: World,
) -> None:
    names = [f"chat-{index:03}" for index in range(200)]
    keys = [world.serve(name, replicas=1) for name in names]
    await world.turn()
    for name in names:
        world.serve(name, replicas=2)

    def told() -> int:
        statuses = [world.body(key)["status"] for key in keys]
        return sum(one["scaling"]["desiredReplicas"] == 2 for one in statuses)

    await world.turn(hurried=True)
    deployments = [one for key, one in world.cluster.objects.items() if key.plural == "deployments"]
    assert [one["spec"]["replicas"] for one in deployments] == [2] * len(names)
    first = told()
    assert 0 < first < len(keys)
    await world.turn(hurried=True)
    assert first < told() < len(keys)
    for _ in range(10):
        await world.turn(hurried=True)
    assert told() == len(keys)


async def test_what_services_were_made_of_is_forgotten_with_them(world: World) -> None:
    async def come_and_go(name: str) -> None:
        world.serve(name)
        await world.turn()
        await world.turn()
        for key in [key for key in world.cluster.objects if name in key.name]:
            await world.cluster.delete(INFERENCE_SERVICES, key)
        await world.turn()
        world.cluster.forget_the_past()

    world.serve("stays")
    for index in range(3):
        await come_and_go(f"first-{index}")
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(10):
            await come_and_go(f"later-{index}")
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 10 < 8000, "bytes for each service that came and went"
