"""Properties of a batch under random events."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.batch_inference import TERMINAL_STATES
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.decide import apply_funding, propose_batch
from tessera.domain.status.batch import batch_status
from tests.batch_builders import (
    NIGHT,
    ON_DEMAND_NODE,
    ROWS,
    SPOT_NODE,
    a_batch_pod,
    a_batch_spec,
    a_check_report,
    a_job,
    a_progress_sample,
    a_report,
    a_situation,
    carry_out,
    later,
    plan_and_carry_out,
)
from tests.builders import NOW
from tests.properties import examples

HOUR = 3600

EVENTS = st.sampled_from(
    [
        "works", "works", "works", "ends with 1", "is evicted", "is deleted", "loses its node",
        "completes", "is refused", "crashes", "loses its job", "loses its pod",
        "suspend", "resume", "no money", "money", "no claim", "claim", "stuck", "a minute",
        "an hour", "Only", "Never", "Preferred", "status is lost", "leaves something behind",
    ]
)  # fmt: skip


class BatchSimulation:
    """Play events on one batch."""

    def __init__(self) -> None:
        checked = a_batch_pod(None, exit_code=0, ended=NOW, report=a_check_report())
        self.now = plan_and_carry_out(a_situation(), pods=(checked,))
        self.shortage: str | None = None
        self.numbers: list[int] = []
        self.done = 0

    def happens(self, event: str) -> None:
        status = self.now.batch.status
        number = status.attempt.number if status.attempt else 0
        self._to_the_pod(event, number)
        self._to_the_batch(event)
        self.now = later(self.now, {"a minute": 60, "an hour": HOUR}.get(event, 7))

    def _to_the_pod(self, event: str, number: int) -> None:
        self.done += 50 if event == "works" else 0
        report = a_report(number, "failed", completed=min(self.done, ROWS), outputTokens=1)
        completed = a_report(number, "completed", completed=ROWS, outputTokens=ROWS)
        changes: dict[str, dict[str, Any]] = {
            "ends with 1": {"exit_code": 1, "report": report},
            "is evicted": {"disrupted": True},
            "is deleted": {"terminating": True},
            "loses its node": {"node": "nowhere"},
            "completes": {"exit_code": 0, "report": completed},
            "is refused": {"exit_code": 3, "report": report},
            "crashes": {"waiting_reason": "CrashLoopBackOff"},
            "works": {"runner_since": self.now.at},
            "stuck": {"node": None, "bound": None, "unschedulable": "0/2"},
        }
        pods = tuple(
            replace(pod, **changes[event]) if event in changes and pod.attempt == number else pod
            for pod in self.now.pods
        )
        jobs = tuple(
            job for job in self.now.jobs if not (event == "loses its job" and job.attempt == number)
        )
        if event == "loses its pod":
            pods = tuple(pod for pod in pods if pod.attempt != number)
            jobs = tuple(replace(job, failed=job.attempt == number) for job in jobs)
        if event == "works" and number:
            answer = a_progress_sample(min(self.done, ROWS), 0, attempt=number)
            self.now = replace(self.now, progress_sample=replace(answer, at=self.now.at))
        if event == "leaves something behind":
            jobs = (*(job for job in jobs if job.attempt != 40), a_job(40))
        self.now = replace(self.now, pods=pods, jobs=jobs)

    def _to_the_batch(self, event: str) -> None:
        spec = self.now.batch.spec
        assert spec is not None
        if event in ("Only", "Never", "Preferred"):
            spec = a_batch_spec(spot={"policy": event}, suspend=spec.suspend)
        if event in ("suspend", "resume"):
            spec = spec.model_copy(update={"suspend": event == "suspend"})
        if event in ("no money", "money"):
            self.shortage = "none is left" if event == "no money" else None
        claim = {"no claim": None, "claim": a_situation().claim}.get(event, self.now.claim)
        batch = replace(self.now.batch, spec=spec)
        if event == "status is lost" and batch.status.attempt is not None:
            known = batch.status.model_copy(update={"attempt": None})
            batch = replace(batch, status=known) if self.now.jobs else batch
        self.now = replace(self.now, batch=batch, claim=claim)

    def turn(self) -> None:
        plan = apply_funding(propose_batch(self.now), self.shortage)
        if plan.create is not None and plan.create.attempt is not None:
            assert plan.attempt is not None
            assert plan.attempt.number == plan.create.attempt
            assert plan.create.attempt > max(self.numbers, default=0), "a number came twice"
            self.numbers.append(plan.create.attempt)
        self._carry_out(plan)
        again = apply_funding(propose_batch(self.now), self.shortage)
        if again.create is None or again.create.attempt is not None:
            assert (again.create, again.delete) == (None, ())
            assert batch_status(again, self.now.at) == self.now.batch.status
        self._assert_one_attempt()

    def _carry_out(self, got: BatchPlan) -> None:
        self.now = carry_out(self.now, got)
        created = got.create.attempt if got.create is not None else None
        if created is not None:
            node = SPOT_NODE if got.attempt and got.attempt.tier == "Spot" else ON_DEMAND_NODE
            pod = a_batch_pod(created, node=node, created=self.now.at, bound=self.now.at)
            pod = replace(pod, runner_since=None)
            self.now = replace(self.now, pods=(*self.now.pods, pod))

    def _assert_one_attempt(self) -> None:
        over = {pod.attempt for pod in self.now.pods if pod.finished}
        wanted = [job for job in self.now.jobs if job.attempt and job.attempt not in over]
        assert len(wanted) <= 1
        if self.now.batch.status.state in TERMINAL_STATES:
            assert not wanted


@settings(max_examples=examples(150))
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_numbers_never_repeat_and_one_attempt_runs_at_most(
    events: list[str],
) -> None:
    simulation = BatchSimulation()
    simulation.turn()
    for event in events:
        simulation.happens(event)
        simulation.turn()


@settings(max_examples=examples(60))
@given(st.lists(EVENTS, max_size=30))
def test_a_batch_that_is_over_stays_so(events: list[str]) -> None:
    simulation = BatchSimulation()
    simulation.turn()
    over: str | None = None
    for event in [*events, "completes", *events]:
        simulation.happens("resume" if event == "status is lost" else event)
        simulation.turn()
        state = simulation.now.batch.status.state
        assert over in (None, state)
        over = state if state in TERMINAL_STATES else None


def test_a_batch_that_is_left_alone_ends_within_its_deadline() -> None:
    simulation = BatchSimulation()
    for _ in range(40):
        simulation.turn()
        simulation.happens("works")
        if simulation.now.batch.status.done == f"{ROWS}/{ROWS}":
            simulation.happens("completes")
    assert simulation.now.batch.status.state == "completed"
    assert simulation.numbers == [1]
    assert (
        simulation.now.batch.created + timedelta(hours=24) == simulation.now.batch.status.deadline
    )
    assert simulation.now.batch.ref == NIGHT
