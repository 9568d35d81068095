"""An incremental plan saves time and decides the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tessera.api.batch_inference import BatchInferenceStatus
from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain import schedules
from tessera.domain.health import stall
from tessera.domain.incremental import FOREVER, Incremental, Until
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import (
    BatchPod,
    EngineReading,
    InFlight,
    Pod,
    ProbeResult,
    Readings,
    Ref,
    Snapshot,
)
from tessera.domain.placement import placement
from tessera.domain.placement.placement import PlacementDecision
from tessera.domain.planning import observations, rollout_span
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout import balance
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service import proposal
from tessera.domain.status.service import service_status
from tests.batch_builders import NIGHT, a_batch, a_job
from tests.builders import (
    NO_MEMORY,
    NOW,
    a_budget,
    a_model_job,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_speed_reading,
    a_workload,
    plan_of,
    readings_of,
    replica_of,
)
from tests.domain.slo.latencies import of_engines

OWN = "hf://acme/own"
READ = {
    "ok": True,
    "shape": {
        "parameters": 100_000_000,
        "layers": 12,
        "attentionHeads": 12,
        "kvHeads": 4,
        "headDim": 64,
        "maxPositionEmbeddings": 8192,
    },
}
NAMES = ("chat", "code", "sum")
SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 4,
    "queue": {"target": 5},
    "scaleUp": {"stabilizationWindow": "20s", "pods": 1, "period": "30s"},
    "scaleDown": {"stabilizationWindow": "60s"},
}
SCHEDULES = [{"cron": "1-59/2 * * * *", "minReplicas": 2}, {"cron": "*/2 * * * *"}]
SCALINGS = {
    "chat": SCALING,
    "code": {**SCALING, "schedules": SCHEDULES},
    "sum": {**SCALING, "policy": "Capacity"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStep:
    """What changes in the fleet between two cycles."""

    passed: int
    name: str
    waiting: float
    replicas: int | None
    pods: int
    change: str


steps = st.builds(
    FleetStep,
    passed=st.sampled_from((1, 5, 15, 45)),
    name=st.sampled_from(NAMES),
    waiting=st.sampled_from((0.0, 0.0, 4.0, 12.0, 40.0)),
    replicas=st.sampled_from((None, None, 2, 3)),
    pods=st.integers(0, 4),
    change=st.sampled_from(
        (
            *("nothing", "nothing", "load", "spec", "pods", "node", "blind", "answer", "refused"),
            *("model", "model job", "claim", "read", "gone"),
            *("batch", "batch pod", "service", "pool"),
            *("drain", "skew", "engines", "asked", "speeds", "latency", "finished", "gateway"),
        )
    ),
)


def initial_snapshot() -> Snapshot:
    return a_snapshot(
        *(a_service(name, a_spec(scaling=SCALINGS[name])) for name in NAMES),
        nodes=(a_node(slices={"1g.10gb": 7}),),
        readings=readings_of(()),
    )


def pods_of(name: str, count: int) -> list[Pod]:
    return [a_pod(f"{name}-{index}", name, ready_since=NOW) for index in range(count)]


def next_snapshot(old: Snapshot, step: FleetStep) -> Snapshot:
    at = old.at + timedelta(seconds=step.passed)
    readings = replace(old.readings, at=at) if old.readings else Readings(at=at)
    new = replace(old, at=at, readings=readings)
    return replace(new, **CHANGES[step.change](old, new, readings, step))


Fields = dict[str, Any]


def change_load(old: Snapshot, _: Snapshot, readings: Readings, step: FleetStep) -> Fields:
    service_pods = [pod for pod in old.pods if pod.service.name == step.name]
    pod_readings = readings_of(service_pods, waiting=step.waiting, activity=0.5).pods
    return {"readings": replace(readings, pods={**readings.pods, **pod_readings})}


def change_skew(old: Snapshot, _: Snapshot, readings: Readings, step: FleetStep) -> Fields:
    """Let one replica hold all requests."""
    service_pods = [pod for pod in old.pods if pod.service.name == step.name]
    idle = readings_of(service_pods, running=0.0).pods
    busy = readings_of(service_pods[:1], running=32 * step.waiting).pods
    return {"readings": replace(readings, pods={**readings.pods, **idle, **busy})}


def change_engines(old: Snapshot, new: Snapshot, readings: Readings, step: FleetStep) -> Fields:
    """Scrape the engines, which make no step, or some."""
    engine = EngineReading(steps=step.waiting, scraped_at=new.at, awake=True)
    service_pods = [pod for pod in old.pods if pod.service.name == step.name]
    engines = {**readings.engines, **{pod.ref: engine for pod in service_pods}}
    return {"readings": replace(readings, engines=engines)}


def change_in_flight(old: Snapshot, new: Snapshot, _: Readings, step: FleetStep) -> Fields:
    """Ask the engines for their requests."""
    service_pods = [pod for pod in old.pods if pod.service.name == step.name]
    answer = InFlight(new.at, int(step.waiting))
    return {"in_flight": {**old.in_flight, **{pod.ref: answer for pod in service_pods}}}


def change_speeds(old: Snapshot, new: Snapshot, readings: Readings, step: FleetStep) -> Fields:
    del old
    speed = a_speed_reading(itl_seconds=0.01 * (1 + step.pods))
    speeds = {**readings.speeds, Ref("team-a", step.name): (speed,)}
    return {"readings": replace(readings, speeds=speeds, speeds_at=new.at)}


def change_latency(old: Snapshot, new: Snapshot, readings: Readings, step: FleetStep) -> Fields:
    del old
    ref = Ref("team-a", step.name)
    latencies = {**readings.latencies, ref: of_engines(ttft=step.pods / 10)}
    if step.replicas is None:
        del latencies[ref]
    return {"readings": replace(readings, latencies=latencies, latencies_at=new.at)}


def change_finished(old: Snapshot, _: Snapshot, readings: Readings, step: FleetStep) -> Fields:
    """Let the engines finish requests, or none."""
    del old
    rates = {**readings.finish_rates, Ref("team-a", step.name): step.waiting / 4}
    return {"readings": replace(readings, finish_rates=rates)}


def change_demand(old: Snapshot, *rest: Any) -> Fields:
    """Let a gateway report what came for the service, or let it be silent."""
    step: FleetStep = rest[-1]
    if step.pods == 0:
        return {"demand": None}
    demand = GatewayDemand(
        queued=int(step.waiting),
        arrivals_per_second=step.waiting / 60,
        arrivals=(0,) * 59 + (int(step.waiting),) if step.waiting else (),
    )
    return {"demand": {**(old.demand or {}), Ref("team-a", step.name): demand}}


def change_spec(old: Snapshot, *rest: Any) -> Fields:
    step: FleetStep = rest[-1]
    scaling = {"scaling": SCALINGS[step.name]}
    fixed = scaling if step.replicas is None else {"replicas": step.replicas}
    services = [
        replace(service, spec=a_spec(**fixed), generation=service.generation + 1)
        if service.ref.name == step.name
        else service
        for service in old.services
    ]
    return {"services": tuple(services)}


def change_pods(old: Snapshot, *rest: Any) -> Fields:
    step: FleetStep = rest[-1]
    other_pods = [pod for pod in old.pods if pod.service.name != step.name]
    other_workloads = [workload for workload in old.workloads if workload.service.name != step.name]
    return {
        "pods": (*other_pods, *pods_of(step.name, step.pods)),
        "workloads": (*other_workloads, a_workload(step.pods, step.name)),
    }


def drain_pods(old: Snapshot, new: Snapshot, _: Readings, step: FleetStep) -> Fields:
    """Close the readiness gates of its replicas."""
    return {
        "pods": tuple(
            replace(pod, serving=False, draining_since=new.at)
            if pod.service.name == step.name
            else pod
            for pod in old.pods
        )
    }


def change_probe_result(old: Snapshot, new: Snapshot, _: Readings, step: FleetStep) -> Fields:
    problem = None if step.pods else "503"
    probe_result = ProbeResult(at=new.at, problem=problem)
    return {"probe_results": {**old.probe_results, Ref("team-a", step.name): probe_result}}


def change_model(old: Snapshot, *rest: Any) -> Fields:
    """Give the service an unknown model whose files belong on a claim."""
    step: FleetStep = rest[-1]
    wanted = a_spec(OWN, model={"cache": {"type": "PersistentVolumeClaim"}}, replicas=2)
    return {
        "services": tuple(
            replace(service, spec=wanted) if service.ref.name == step.name else service
            for service in old.services
        )
    }


def change_model_job(old: Snapshot, *rest: Any) -> Fields:
    """Add a Job of its model that runs, succeeds, or fails for a reason that may pass."""
    step: FleetStep = rest[-1]
    (service,) = [candidate for candidate in old.services if candidate.ref.name == step.name]
    task, report = ("shape", READ) if step.pods % 2 else ("fetch", {"ok": True, "bytes": 5})
    code = {0.0: 0, 4.0: None, 12.0: 1}.get(step.waiting, 3)
    job_objects = a_model_job(task, service, report=report, exit_code=code)
    job_uids = {job.uid for job in old.model_jobs if job.service == service.ref}
    other_pods = [
        pod
        for pod in old.pods
        if pod.model_job_run is None or pod.model_job_run.job_uid not in job_uids
    ]
    return {
        "model_jobs": (
            *(job for job in old.model_jobs if job.uid not in job_uids),
            *job_objects["model_jobs"],
        ),
        "pods": (*other_pods, *job_objects["pods"]),
    }


def delete_model_jobs(old: Snapshot, *rest: Any) -> Fields:
    """Delete the Jobs of its model, and their pods with them."""
    step: FleetStep = rest[-1]
    ref = Ref("team-a", step.name)
    return {
        "model_jobs": tuple(job for job in old.model_jobs if job.service != ref),
        "pods": tuple(
            pod for pod in old.pods if pod.model_job_run is None or pod.model_job_run.service != ref
        ),
    }


def change_claim(old: Snapshot, new: Snapshot, *rest: Any) -> Fields:
    """Create the claims of its model, or replace them."""
    step: FleetStep = rest[-1]
    volume_claim = VolumeClaim(access_modes=("ReadWriteMany",), uid=f"uid-{step.pods}")
    claims = plan_of(new).service_plans[Ref("team-a", step.name)].claims
    return {"claims": {**old.claims, **dict.fromkeys((each.ref for each in claims), volume_claim)}}


def record_model_status(_: Snapshot, new: Snapshot, *rest: Any) -> Fields:
    """Write what is known of its model to the status."""
    step: FleetStep = rest[-1]
    ref = Ref("team-a", step.name)
    model_status = service_status(new, plan_of(new).service_plans[ref], None, None).model
    return {
        "services": tuple(
            replace(service, status=service.status.model_copy(update={"model": model_status}))
            if service.ref == ref
            else service
            for service in new.services
        )
    }


def change_batch(old: Snapshot, *_: Any) -> Fields:
    """Create a batch, let it end, or delete it."""
    batch = a_batch()
    if not old.batches:
        return {"batches": (batch,)}
    if old.batches[0].status.state == "completed":
        return {"batches": ()}
    return {"batches": (replace(batch, status=BatchInferenceStatus(state="completed")),)}


def change_batch_pod(old: Snapshot, *rest: Any) -> Fields:
    """Start an attempt of the batch, or let its Job and its pod go."""
    step: FleetStep = rest[-1]
    other_pods = tuple(pod for pod in old.pods if pod.batch_run is None)
    if old.batch_jobs:
        return {"batch_jobs": (), "pods": other_pods}
    job = a_job(step.pods)
    pod = BatchPod(
        ref=job.ref,
        uid=f"uid-{job.ref.name}",
        service=NIGHT,
        created=NOW,
        containers_ready=True,
        batch=NIGHT,
        batch_uid="uid-night",
        attempt=step.pods,
        owner=job.uid,
    )
    return {"batch_jobs": (job,), "pods": (*other_pods, pod)}


def change_services(old: Snapshot, *_: Any) -> Fields:
    """Create one more service, or delete it."""
    others = tuple(service for service in old.services if service.ref.name != "extra")
    more = () if len(others) < len(old.services) else (a_service("extra", a_spec(scaling=SCALING)),)
    return {"services": (*others, *more)}


def change_pool(old: Snapshot, *rest: Any) -> Fields:
    """Change the price of the pool."""
    step: FleetStep = rest[-1]
    pool = a_pool(per_gpu_hour=str(1 + step.pods))
    return {"pools": (replace(pool, generation=old.pools[0].generation + 1),)}


CHANGES: dict[str, Callable[[Snapshot, Snapshot, Readings, FleetStep], Fields]] = {
    "batch": change_batch,
    "batch pod": change_batch_pod,
    "service": change_services,
    "pool": change_pool,
    "nothing": lambda *_: {},
    "load": change_load,
    "skew": change_skew,
    "engines": change_engines,
    "asked": change_in_flight,
    "speeds": change_speeds,
    "latency": change_latency,
    "finished": change_finished,
    "gateway": change_demand,
    "spec": change_spec,
    "pods": change_pods,
    "drain": drain_pods,
    "node": lambda *rest: {"nodes": (a_node(slices={"1g.10gb": 3 + rest[-1].pods}),)},
    "blind": lambda old, *_: {"readings": old.readings},
    "answer": change_probe_result,
    "model": change_model,
    "model job": change_model_job,
    "claim": change_claim,
    "read": record_model_status,
    "gone": delete_model_jobs,
    "refused": lambda old, *_: {
        "budgets": () if old.budgets else (a_budget(amount="0.05"),),
    },
}


def without_history(service_plans: Mapping[Ref, ServicePlan]) -> dict[Ref, ServicePlan]:
    """Drop the times in the history, which an incremental plan updates later."""
    return {
        ref: replace(service_plan, scale=replace(service_plan.scale, history=ScalingHistory()))
        for ref, service_plan in service_plans.items()
    }


def decisions_on_others(decision: Plan) -> object:
    """Return what a plan decides on all objects that are no services."""
    return (
        decision.pools,
        decision.meters,
        decision.batches,
        decision.orphaned_jobs,
        decision.removed_workloads,
        decision.services_to_probe,
        decision.suspects,
    )


def a_step(change: str, waiting: float = 0, passed: int = 5) -> FleetStep:
    return FleetStep(
        passed=passed, name="chat", waiting=waiting, replicas=None, pods=1, change=change
    )


SPIKE_AFTER_A_LULL = [
    a_step("pods"),
    *(a_step("load") for _ in range(20)),
    *(a_step("load", waiting=40) for _ in range(6)),
]


A_MODEL_THAT_IS_READ_AND_FETCHED = [
    a_step("model"),
    a_step("model job", waiting=4),
    a_step("model job"),
    a_step("read"),
    replace(a_step("pods"), pods=2),
    *(a_step("nothing") for _ in range(2)),
    a_step("claim"),
    *(a_step("nothing") for _ in range(2)),
    replace(a_step("model job", waiting=12), pods=2),
    *(a_step("nothing", passed=15) for _ in range(3)),
    replace(a_step("model job"), pods=2),
    a_step("read"),
    a_step("gone"),
    *(a_step("nothing") for _ in range(2)),
    replace(a_step("claim"), pods=3),
    a_step("nothing"),
]


AN_ENGINE_THAT_STALLS = [
    replace(a_step("pods"), pods=3),
    *(a_step("nothing", passed=45) for _ in range(2)),
    a_step("engines"),
    *(a_step(change, waiting=4, passed=15) for _ in range(12) for change in ("asked", "engines")),
    *(a_step("nothing") for _ in range(8)),
    a_step("skew", waiting=4),
    *(a_step("nothing") for _ in range(2)),
]


A_REPLICA_THAT_HOLDS_ALL_REQUESTS = [
    replace(a_step("pods"), pods=3),
    a_step("skew", waiting=4),
    *(a_step("nothing", passed=45) for _ in range(3)),
]


def of_sum(*sequence: FleetStep) -> list[FleetStep]:
    return [replace(step, name="sum") for step in sequence]


A_LOAD_AFTER_AN_HOUR_WITHOUT = of_sum(
    replace(a_step("pods"), pods=2),
    *(a_step(change) for change in ("load", "finished", "speeds")),
    *(a_step("nothing", passed=45) for _ in range(80)),
    *(a_step("load", waiting=12) for _ in range(12)),
    a_step("finished", waiting=12),
    *(a_step("nothing") for _ in range(20)),
    a_step("load"),
    a_step("finished"),
    *(a_step("nothing", passed=45) for _ in range(30)),
    *(a_step("blind", passed=45) for _ in range(9)),
    *(a_step("gateway", waiting=12) for _ in range(8)),
    *(a_step("load", waiting=4) for _ in range(3)),
    *(a_step("nothing") for _ in range(3)),
)


A_REPLICA_THAT_LEAVES = [
    replace(a_step("pods"), pods=3),
    *(a_step("nothing", passed=45) for _ in range(4)),
    *(replace(a_step(change), replicas=2) for change in ("spec", "drain")),
    *(a_step("nothing", passed=45) for _ in range(20)),
]


def compare_plans(sequence: list[FleetStep]) -> None:
    """Play a sequence with and without an `Incremental`."""
    incremental, plain, quick = Incremental(), initial_snapshot(), initial_snapshot()
    plain_memory = quick_memory = NO_MEMORY
    for step in sequence:
        plain, quick = next_snapshot(plain, step), next_snapshot(quick, step)
        if step.change == "refused":  # a budget of the same name that was never metered
            plain_memory = replace(plain_memory, meters={})
            quick_memory = replace(quick_memory, meters={})
        slow = plan_of(plain, memory=plain_memory)
        fast = plan_of(quick, memory=quick_memory, incremental=incremental)
        assert without_history(fast.service_plans) == without_history(slow.service_plans)
        assert decisions_on_others(fast) == decisions_on_others(slow)
        plain_memory, quick_memory = plain_memory.after(slow), quick_memory.after(fast)


@given(st.lists(steps, min_size=1, max_size=40))
@example(SPIKE_AFTER_A_LULL)
@example(A_MODEL_THAT_IS_READ_AND_FETCHED)
@example(AN_ENGINE_THAT_STALLS)
@example(A_REPLICA_THAT_LEAVES)
@example(A_REPLICA_THAT_HOLDS_ALL_REQUESTS)
@example(A_LOAD_AFTER_AN_HOUR_WITHOUT)
def test_an_incremental_plan_equals_a_plain_one(sequence: list[FleetStep]) -> None:
    compare_plans(sequence)


@pytest.mark.parametrize(
    ("module", "sequence"),
    [
        (balance, A_REPLICA_THAT_HOLDS_ALL_REQUESTS),
        (observations, A_REPLICA_THAT_HOLDS_ALL_REQUESTS),
        (proposal, SPIKE_AFTER_A_LULL),
        (schedules, [a_step("nothing", passed=45) for _ in range(4)]),
        (rollout_span, A_REPLICA_THAT_LEAVES),
        (stall, AN_ENGINE_THAT_STALLS),
    ],
)
def test_a_decision_that_hides_that_the_time_changes_it_is_found(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, sequence: list[FleetStep]
) -> None:
    compare_plans(sequence)

    def forever(result: object, _until: datetime = FOREVER, *rest: Any) -> Until[object]:
        return Until(result, FOREVER, *rest[:1])

    monkeypatch.setattr(module, "Until", forever)
    with pytest.raises(AssertionError):
        compare_plans(sequence)


def test_an_unchanged_fleet_gets_the_very_same_service_plans() -> None:
    incremental, memory, service_plans = Incremental(), NO_MEMORY, []
    snapshot = replace(initial_snapshot(), workloads=tuple(a_workload(1, name) for name in NAMES))
    for seconds in (0, 5, 10, 15):
        current = replace(snapshot, at=NOW + timedelta(seconds=seconds))
        decision = plan_of(current, memory=memory, incremental=incremental)
        memory = memory.after(decision)
        service_plans.append(decision.service_plans)
    assert all(service_plans[0] is others for others in service_plans)


@pytest.mark.parametrize("policy", ["Capacity", "QueueAndActivity"])
@pytest.mark.parametrize("asleep", [False, True], ids=["idle", "asleep"])
@pytest.mark.parametrize("running", [None, 0.0, 1.0], ids=["unread", "no request", "requests"])
@pytest.mark.parametrize("gateways", [True, False], ids=["gateways", "no gateway"])
def test_a_service_whose_load_stays_is_not_decided_again(
    policy: str, running: float | None, *, asleep: bool, gateways: bool
) -> None:
    pods = () if asleep else tuple(a_pod(f"chat-{index}") for index in range(2))
    scaling = {"policy": policy, "minReplicas": 2}
    if asleep:
        scaling |= {"minReplicas": 0, "idle": {"after": "1m"}}
    fleet = a_snapshot(
        a_service(spec=a_spec(scaling=scaling)),
        pods=pods,
        workloads=(a_workload(len(pods)),),
        demand={} if gateways else None,
    )
    incremental, memory, service_plans = Incremental(), NO_MEMORY, []
    for seconds in range(0, 3600, 60):
        moment = NOW + timedelta(seconds=seconds)
        read_pods = pods if running is not None else ()
        readings = readings_of(read_pods, running=running or 0.0, at=moment)
        snapshot = replace(fleet, at=moment, readings=readings)
        decision = plan_of(snapshot, memory=memory, incremental=incremental)
        memory = memory.after(decision)
        service_plans.append(decision.service_plans)
    assert all(service_plans[5] is others for others in service_plans[5:])
    assert service_plans[-1][Ref("team-a", "chat")].scale.replicas == len(pods)


def test_new_services_are_placed_once_while_there_is_room_for_all_that_they_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands of them may wait for the API server, while others begin to run."""
    placed = list[int | None]()

    def place(spec: InferenceServiceSpec, *arguments: Any, **named: Any) -> PlacementDecision:
        placed.append(spec.fixed_replicas)
        return placement.place(spec, *arguments, **named)

    monkeypatch.setattr(proposal, "place", place)
    services = [a_service(f"new-{count}", a_spec(replicas=count)) for count in (1, 2, 3)]
    nodes = [a_node(slices={"1g.10gb": 7}, name=f"node-{index}") for index in range(3)]
    fleet = a_snapshot(*services, nodes=tuple(nodes))
    workload = a_workload(1, "new-1")
    running = replace(fleet, workloads=(workload,), pods=(replica_of(workload, "new-1-0"),))
    slices = {"nvidia.com/mig-1g.10gb": 7}
    taken = tuple(
        a_pod(node.name, service="", node=node.name, devices=slices, bound=NOW)
        for node in nodes[1:]
    )
    incremental, memory = Incremental(), NO_MEMORY
    for seconds, snapshot, counts in (
        (0, fleet, [1, 2, 3]),
        (5, fleet, []),
        (10, running, [1]),
        (15, running, []),
        (20, replace(running, pods=(*running.pods, *taken)), [2, 3]),
    ):
        placed.clear()
        current = replace(snapshot, at=NOW + timedelta(seconds=seconds))
        decision = plan_of(current, memory=memory, incremental=incremental)
        memory = memory.after(decision)
        assert placed == counts, seconds


def test_a_model_that_was_read_is_recalled_as_the_very_same() -> None:
    """A service with a Job under way is planned again; an equal plan is the same object."""
    own = a_service("chat", a_spec(OWN, replicas=1))
    parts = a_model_job("shape", own, report=READ, exit_code=0)
    first = a_snapshot(own, **parts)
    status = service_status(first, plan_of(first).service_plans[own.ref], None, None)
    service = replace(own, status=status)
    incremental, memory, service_plans = Incremental(), NO_MEMORY, []
    snapshot = a_snapshot(
        service, a_service("code"), workloads=(a_workload(1), a_workload(2, "code"))
    )
    for seconds in (0, 5, 10):
        current = replace(snapshot, at=NOW + timedelta(seconds=seconds))
        decision = plan_of(current, memory=memory, incremental=incremental)
        memory = memory.after(decision)
        service_plans.append(decision.service_plans)
    assert service_plans[1] is service_plans[2]
    snapshot = replace(snapshot, **parts)
    over = [
        plan_of(snapshot, memory=memory, incremental=incremental).service_plans for _ in range(2)
    ]
    preparation = over[0][own.ref].preparation
    assert preparation is not None
    assert preparation.obsolete_jobs == (parts["model_jobs"][0].ref,)
    assert over[0] is over[1]


def test_a_service_that_raises_is_planned_again_in_every_cycle() -> None:
    incremental = Incremental()
    broken = a_service("code", a_spec(uri="hf://meta-llama/Llama-3.2-1B-Instruct"))
    spec = broken.spec.model_copy(update={"context": None}) if broken.spec else None
    snapshot = a_snapshot(replace(broken, spec=spec), a_service("chat"))
    for _ in range(2):
        service_plans = plan_of(snapshot, incremental=incremental).service_plans
        assert service_plans[Ref("team-a", "code")].accepted.reason == "PlannerError"
        assert service_plans[Ref("team-a", "chat")].accepted.reason == "Valid"
    repaired = replace(snapshot, services=(broken, snapshot.services[1]))
    assert (
        plan_of(repaired, incremental=incremental)
        .service_plans[Ref("team-a", "code")]
        .accepted.reason
        == "Valid"
    )
