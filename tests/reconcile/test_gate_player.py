"""Whatever happens to a change under a gate: it ends with a reason, and users keep an answer."""

import random
from collections.abc import Callable

import pytest

from tessera.api.gate_reasons import GateOutcome
from tests.properties import examples
from tests.reconcile.gated_operator import FAILED, GATE, GatedOperator

_ENDED = {reason.value for reason in GateOutcome}
_FORGED = (
    "",
    "Killed",
    '{"phase": "gate"}',
    '{"phase": "gate", "state": "judged", "version": "other", "verdict": "Passed"}',
    "[" * 5000,
    '{"phase": "gate", "state": "judged", "strata": ' + "[" * 3000,
)


class GatePlayer:
    """Plays events against an operator, and judges after each."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a test
        self.operator = GatedOperator()
        self.passed = set[str]()
        """Digests of versions on which a Job of their own said that they pass."""
        self.log = list[str]()

    async def play(self) -> None:
        await self.operator.settle(4)
        self.passed.add(self.stable())
        self.operator.edit(1)
        events: list[Callable[[], None]] = [
            *(self.answer, self.answer, self.answer, self.fail, self.kill, self.forge, self.lie),
            *(self.delete_job, self.edit_gate, self.lose_gate, self.lose_status, self.edit),
            *(self.restart, self.break_suite),
        ]
        for _ in range(10):
            event = self.rng.choice(events)
            self.log.append(event.__name__)
            event()
            for _ in range(self.rng.choice((1, 2, 3))):
                await self.step()
        await self.settle()

    async def step(self, seconds: float = 5) -> None:
        await self.operator.step(seconds)
        numbers = self.operator.revisions()
        in_force = max(numbers, key=lambda name: numbers[name])
        assert in_force in self.passed, self.log
        conditions = {each["type"]: each for each in self.operator.status["conditions"]}
        assert conditions["Progressing"]["reason"] != "ApplyFailed", conditions["Progressing"]
        assert self.operator.status["readyReplicas"] >= 1, self.log

    def stable(self) -> str:
        return str(self.operator.status["stableRevision"])

    # Events

    def answer(self) -> None:
        if (job := self.operator.running_job()) is None:
            return
        self.operator.report(job)
        if self.operator.arguments(job)["role"] == "candidate":
            self.passed.add(str(self.operator.status.get("candidateRevision")))

    def fail(self) -> None:
        if (job := self.operator.running_job("candidate")) is not None:
            self.operator.report(job, **FAILED)

    def kill(self) -> None:
        if (job := self.operator.running_job()) is not None:
            self.operator.kill(job)

    def forge(self) -> None:
        if (job := self.operator.running_job()) is not None:
            self.operator.report(job, self.rng.choice(_FORGED))

    def lie(self) -> None:
        if (job := self.operator.running_job("candidate")) is not None:
            self.operator.report(job, version="0" * 64)

    def break_suite(self) -> None:
        if (job := self.operator.running_job()) is not None:
            self.operator.report(job, state="suiteInvalid", message="line 3")

    def delete_job(self) -> None:
        for job in self.operator.keys("jobs"):
            self.operator.cluster.discard(job)

    def edit_gate(self) -> None:
        if GATE in self.operator.cluster.objects:
            self.operator.put_gate(minPrompts=self.rng.choice((20, 30, 40)))

    def lose_gate(self) -> None:
        if GATE in self.operator.cluster.objects:
            self.operator.cluster.discard(GATE)
        else:
            self.operator.put_gate()

    def lose_status(self) -> None:
        for key in (*self.operator.keys("inferenceservices"), *self.operator.keys("qualitygates")):
            self.operator.body(key).pop("status", None)
            self.operator.cluster.touch(key)

    def edit(self) -> None:
        self.operator.edit(self.rng.randrange(3))

    def restart(self) -> None:
        self.operator.restart()

    # Judging

    async def settle(self) -> None:
        """Let a gate decide on a last change, by a Job that answers or never does."""
        if GATE not in self.operator.cluster.objects:
            self.operator.put_gate()
        self.operator.edit(7)
        last = self.rng.choice((self.answer, self.fail, self.kill, self.forge, self.answer))
        for _ in range(40):
            if self.operator.running_job("candidate") is not None:
                last()
            elif self.operator.running_job() is not None:
                self.answer()
            await self.step(20)
        records = self.operator.status["rollouts"]
        assert records[0]["reason"] in _ENDED, self.log
        assert records[0]["changes"], (last, records[0])
        in_force = self.stable() == records[0]["revision"]
        assert in_force == (records[0]["reason"] == "Passed"), (self.log, records[0])
        assert not self.operator.keys("jobs"), self.log
        assert len(self.operator.keys("deployments")) == 1, self.log


@pytest.mark.parametrize("seed", range(examples(40) // 3))
async def test_each_sequence_ends_in_a_reason_and_only_what_passed_serves(seed: int) -> None:
    await GatePlayer(seed).play()
