"""What a plan remembers saves time and changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tessera.domain.model.names import claim_name
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import Pod, ProbeResult, Readings, Ref, Snapshot
from tessera.domain.plan import PlanCache
from tessera.domain.scaling.autoscale import ScalingHistory
from tessera.domain.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tests.builders import (
    NO_MEMORY,
    NOW,
    a_budget,
    a_model_job,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    plan_of,
    readings_of,
)

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
    "minReplicas": 1,
    "maxReplicas": 4,
    "queue": {"target": 5},
    "scaleUp": {"stabilizationWindow": "20s", "pods": 1, "period": "30s"},
    "scaleDown": {"stabilizationWindow": "60s"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a turn finds that the one before did not."""

    passed: int
    name: str
    waiting: float
    replicas: int | None
    pods: int
    change: str


steps = st.builds(
    Step,
    passed=st.sampled_from((1, 5, 15, 45)),
    name=st.sampled_from(NAMES),
    waiting=st.sampled_from((0.0, 0.0, 4.0, 12.0, 40.0)),
    replicas=st.sampled_from((None, None, 2, 3)),
    pods=st.integers(0, 4),
    change=st.sampled_from(
        (
            *("nothing", "nothing", "load", "spec", "pods", "node", "blind", "answer", "refused"),
            *("model", "model job", "claim", "read", "gone"),
        )
    ),
)


def begun() -> Snapshot:
    return a_snapshot(
        *(a_service(name, a_spec(scaling=SCALING)) for name in NAMES),
        nodes=(a_node(slices={"1g.10gb": 7}),),
        readings=readings_of(()),
    )


def pods_of(name: str, count: int) -> list[Pod]:
    return [a_pod(f"{name}-{index}", name, ready_since=NOW) for index in range(count)]


def after(old: Snapshot, step: Step) -> Snapshot:
    at = old.at + timedelta(seconds=step.passed)
    readings = replace(old.readings, at=at) if old.readings else Readings(at=at)
    new = replace(old, at=at, readings=readings)
    return replace(new, **CHANGES[step.change](old, new, readings, step))


Fields = dict[str, Any]


def load(old: Snapshot, _: Snapshot, readings: Readings, step: Step) -> Fields:
    mine = [pod for pod in old.pods if pod.service.name == step.name]
    told = readings_of(mine, waiting=step.waiting, activity=0.5).pods
    return {"readings": replace(readings, pods={**readings.pods, **told})}


def spec(old: Snapshot, *rest: Any) -> Fields:
    step: Step = rest[-1]
    fixed = {"scaling": SCALING} if step.replicas is None else {"replicas": step.replicas}
    services = [
        replace(one, spec=a_spec(**fixed), generation=one.generation + 1)
        if one.ref.name == step.name
        else one
        for one in old.services
    ]
    return {"services": tuple(services)}


def pods(old: Snapshot, *rest: Any) -> Fields:
    step: Step = rest[-1]
    others = [pod for pod in old.pods if pod.service.name != step.name]
    works = [one for one in old.workloads if one.service.name != step.name]
    return {
        "pods": (*others, *pods_of(step.name, step.pods)),
        "workloads": (*works, a_workload(step.pods, step.name)),
    }


def answer(old: Snapshot, new: Snapshot, _: Readings, step: Step) -> Fields:
    problem = None if step.pods else "503"
    told = ProbeResult(at=new.at, problem=problem)
    return {"probe_results": {**old.probe_results, Ref("team-a", step.name): told}}


def model(old: Snapshot, *rest: Any) -> Fields:
    """A model that nobody described, whose files are to be on a claim."""
    step: Step = rest[-1]
    wanted = a_spec(OWN, model={"cache": {"type": "PersistentVolumeClaim"}}, replicas=2)
    return {
        "services": tuple(
            replace(one, spec=wanted) if one.ref.name == step.name else one for one in old.services
        )
    }


def model_job(old: Snapshot, *rest: Any) -> Fields:
    """A Job of its model comes, goes on, ends well, or ends for a reason that may pass."""
    step: Step = rest[-1]
    (service,) = [one for one in old.services if one.ref.name == step.name]
    task, report = ("shape", READ) if step.pods % 2 else ("fetch", {"ok": True, "bytes": 5})
    code = {0.0: 0, 4.0: None, 12.0: 1}.get(step.waiting, 3)
    made = a_model_job(task, service, report=report, exit_code=code)
    mine = {job.uid for job in old.model_jobs if job.service == service.ref}
    others = [
        pod
        for pod in old.pods
        if pod.model_job_run is None or pod.model_job_run.job_uid not in mine
    ]
    return {
        "model_jobs": (
            *(one for one in old.model_jobs if one.uid not in mine),
            *made["model_jobs"],
        ),
        "pods": (*others, *made["pods"]),
    }


def gone(old: Snapshot, *rest: Any) -> Fields:
    """The Jobs of its model are deleted, and their pods with them."""
    step: Step = rest[-1]
    ref = Ref("team-a", step.name)
    return {
        "model_jobs": tuple(job for job in old.model_jobs if job.service != ref),
        "pods": tuple(
            pod for pod in old.pods if pod.model_job_run is None or pod.model_job_run.service != ref
        ),
    }


def claim(old: Snapshot, *rest: Any) -> Fields:
    """The claim of its model comes, or is made again."""
    step: Step = rest[-1]
    made = VolumeClaim(access_modes=("ReadWriteMany",), uid=f"uid-{step.pods}")
    return {"claims": {**old.claims, Ref("team-a", claim_name(step.name)): made}}


def remembered(_: Snapshot, new: Snapshot, *rest: Any) -> Fields:
    """What was found out about its model is written down."""
    step: Step = rest[-1]
    ref = Ref("team-a", step.name)
    found = service_status(new, plan_of(new).service_plans[ref], None, None).model
    return {
        "services": tuple(
            replace(one, status=one.status.model_copy(update={"model": found}))
            if one.ref == ref
            else one
            for one in new.services
        )
    }


CHANGES: dict[str, Callable[[Snapshot, Snapshot, Readings, Step], Fields]] = {
    "nothing": lambda *_: {},
    "load": load,
    "spec": spec,
    "pods": pods,
    "node": lambda *rest: {"nodes": (a_node(slices={"1g.10gb": 3 + rest[-1].pods}),)},
    "blind": lambda old, *_: {"readings": old.readings},
    "answer": answer,
    "model": model,
    "model job": model_job,
    "claim": claim,
    "read": remembered,
    "gone": gone,
    "refused": lambda old, *_: {
        "budgets": () if old.budgets else (a_budget(amount="0.05"),),
    },
}


def told(allotments: Mapping[Ref, ServicePlan]) -> dict[Ref, ServicePlan]:
    """All but the moments in the memory, which a kept plan brings up to date later."""
    return {
        ref: replace(one, scale=replace(one.scale, history=ScalingHistory()))
        for ref, one in allotments.items()
    }


def a_step(change: str, waiting: float = 0, passed: int = 5) -> Step:
    return Step(passed=passed, name="chat", waiting=waiting, replicas=None, pods=1, change=change)


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


@given(st.lists(steps, min_size=1, max_size=40))
@example(SPIKE_AFTER_A_LULL)
@example(A_MODEL_THAT_IS_READ_AND_FETCHED)
def test_a_kept_plan_decides_as_one_that_remembers_nothing(course: list[Step]) -> None:
    kept, plain, quick = PlanCache(), begun(), begun()
    plain_memory = quick_memory = NO_MEMORY
    for step in course:
        plain, quick = after(plain, step), after(quick, step)
        if step.change == "refused":  # a budget of the same name that was never metered
            plain_memory = replace(plain_memory, meters={})
            quick_memory = replace(quick_memory, meters={})
        slow = plan_of(plain, memory=plain_memory)
        fast = plan_of(quick, memory=quick_memory, cache=kept)
        assert told(fast.service_plans) == told(slow.service_plans)
        plain_memory, quick_memory = plain_memory.after(slow), quick_memory.after(fast)


def test_an_unchanged_fleet_is_allotted_the_very_same() -> None:
    kept, memory, found = PlanCache(), NO_MEMORY, []
    snapshot = replace(begun(), workloads=tuple(a_workload(1, name) for name in NAMES))
    for seconds in (0, 5, 10, 15):
        current = replace(snapshot, at=NOW + timedelta(seconds=seconds))
        got = plan_of(current, memory=memory, cache=kept)
        memory = memory.after(got)
        found.append(got.service_plans)
    assert found[0] is not found[1]
    assert found[2] is found[3]


def test_a_model_that_was_read_is_recalled_as_the_very_same() -> None:
    """Only who has something under way is planned anew."""
    own = a_service("chat", a_spec(OWN, replicas=1))
    parts = a_model_job("shape", own, report=READ, exit_code=0)
    first = a_snapshot(own, **parts)
    status = service_status(first, plan_of(first).service_plans[own.ref], None, None)
    service = replace(own, status=status)
    kept, memory, found = PlanCache(), NO_MEMORY, []
    snapshot = a_snapshot(
        service, a_service("code"), workloads=(a_workload(1), a_workload(2, "code"))
    )
    for seconds in (0, 5, 10):
        current = replace(snapshot, at=NOW + timedelta(seconds=seconds))
        got = plan_of(current, memory=memory, cache=kept)
        memory = memory.after(got)
        found.append(got.service_plans)
    assert found[1] is found[2]
    snapshot = replace(snapshot, **parts)
    over = [plan_of(snapshot, memory=memory, cache=kept).service_plans for _ in range(2)]
    preparation = over[0][own.ref].preparation
    assert preparation is not None
    assert preparation.obsolete_jobs == (parts["model_jobs"][0].ref,)
    assert over[0][own.ref] is not over[1][own.ref]
    assert over[0][Ref("team-a", "code")] is over[1][Ref("team-a", "code")]


def test_a_service_that_raises_is_tried_again_in_every_turn() -> None:
    kept = PlanCache()
    broken = a_service("code", a_spec(uri="hf://meta-llama/Llama-3.2-1B-Instruct"))
    spec = broken.spec.model_copy(update={"context": None}) if broken.spec else None
    snapshot = a_snapshot(replace(broken, spec=spec), a_service("chat"))
    for _ in range(2):
        found = plan_of(snapshot, cache=kept).service_plans
        assert found[Ref("team-a", "code")].accepted.reason == "PlannerError"
        assert found[Ref("team-a", "chat")].accepted.reason == "Valid"
    mended = replace(snapshot, services=(broken, snapshot.services[1]))
    assert (
        plan_of(mended, cache=kept).service_plans[Ref("team-a", "code")].accepted.reason == "Valid"
    )
