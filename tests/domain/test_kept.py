"""What a plan remembers saves time and changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tessera.domain.autoscale import Memory
from tessera.domain.plan import Allotment, Kept, plan
from tessera.domain.snapshot import Answer, Pod, Readings, Ref, Snapshot
from tests.builders import (
    NOW,
    a_budget,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    readings_of,
)

NAMES = ("chat", "code", "sum")
SCALING = {
    "minReplicas": 1,
    "maxReplicas": 4,
    "queue": {"target": 5},
    "scaleUp": {"window": "20s", "pods": 1, "period": "30s"},
    "scaleDown": {"window": "60s"},
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
        ("nothing", "nothing", "load", "spec", "pods", "node", "blind", "answer", "refused")
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
    told = Answer(at=new.at, problem=problem)
    return {"answers": {**old.answers, Ref("team-a", step.name): told}}


CHANGES: dict[str, Callable[[Snapshot, Snapshot, Readings, Step], Fields]] = {
    "nothing": lambda *_: {},
    "load": load,
    "spec": spec,
    "pods": pods,
    "node": lambda *rest: {"nodes": (a_node(slices={"1g.10gb": 3 + rest[-1].pods}),)},
    "blind": lambda old, *_: {"readings": old.readings},
    "answer": answer,
    "refused": lambda old, *_: {
        "budgets": () if old.budgets else (a_budget(amount="0.05"),),
        "meters": {},
    },
}


def told(allotments: Mapping[Ref, Allotment]) -> dict[Ref, Allotment]:
    """All but the moments in the memory, which a kept plan brings up to date later."""
    return {
        ref: replace(one, scale=replace(one.scale, memory=Memory()))
        for ref, one in allotments.items()
    }


def a_step(change: str, waiting: float = 0, passed: int = 5) -> Step:
    return Step(passed=passed, name="chat", waiting=waiting, replicas=None, pods=1, change=change)


SPIKE_AFTER_A_LULL = [
    a_step("pods"),
    *(a_step("load") for _ in range(20)),
    *(a_step("load", waiting=40) for _ in range(6)),
]


@settings(deadline=None)  # machines are shared
@given(st.lists(steps, min_size=1, max_size=40))
@example(SPIKE_AFTER_A_LULL)
def test_a_kept_plan_decides_as_one_that_remembers_nothing(course: list[Step]) -> None:
    kept, plain, quick = Kept(), begun(), begun()
    for step in course:
        plain, quick = after(plain, step), after(quick, step)
        slow, fast = plan(plain), plan(quick, kept)
        assert told(fast.allotments) == told(slow.allotments)
        plain = replace(plain, memory=dict(slow.memory), meters=dict(slow.meters))
        quick = replace(quick, memory=dict(fast.memory), meters=dict(fast.meters))


def test_an_unchanged_fleet_is_allotted_the_very_same() -> None:
    kept, found = Kept(), []
    snapshot = replace(begun(), workloads=tuple(a_workload(1, name) for name in NAMES))
    for seconds in (0, 5, 10, 15):
        got = plan(replace(snapshot, at=NOW + timedelta(seconds=seconds)), kept)
        snapshot = replace(snapshot, memory=dict(got.memory))
        found.append(got.allotments)
    assert found[0] is not found[1]
    assert found[2] is found[3]


def test_a_service_that_raises_is_tried_again_in_every_turn() -> None:
    kept = Kept()
    broken = a_service("code", a_spec(uri="hf://meta-llama/Llama-3.2-1B-Instruct"))
    spec = broken.spec.model_copy(update={"context": None}) if broken.spec else None
    snapshot = a_snapshot(replace(broken, spec=spec), a_service("chat"))
    for _ in range(2):
        found = plan(snapshot, kept).allotments
        assert found[Ref("team-a", "code")].accepted.reason == "PlannerError"
        assert found[Ref("team-a", "chat")].accepted.reason == "Valid"
    mended = replace(snapshot, services=(broken, snapshot.services[1]))
    assert plan(mended, kept).allotments[Ref("team-a", "code")].accepted.reason == "Valid"
