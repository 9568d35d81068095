"""What is done to batches, and what becomes of them: lost nodes, and random harm."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from demo.stage import Json, Stage
from scenarios.batches import Batch, Rows, Shelf, is_over, number_in
from scenarios.kills import kill_operator
from tessera.batch_runner import parts
from tessera.domain.batch.names import RUNNER
from tessera.domain.batch.spot_nodes import DISRUPTION_TAINTS
from tessera.domain.names import ENGINE
from tessera.resources.api_resources import JOBS, PODS
from world import WorldError
from world.client import RunningContainer
from world.informer import Informer, Key
from world.testing import eventually

# Those that a cloud or its tools set; the others are Kubernetes' own.
CLOUD_TAINTS = tuple(sorted(key for key in DISRUPTION_TAINTS if "node.kubernetes.io/" not in key))
# What is killed with -9, or cut off from the API.
KINDS = ("runner", "engine", "node", "silence", "operator")
_LONGEST_WAIT = 180.0
# Exit codes of runners by their pods.
Codes = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """A batch that lost the node of an attempt, once it is completed and the node is back."""

    rows: Rows
    old: int
    """The attempt whose node was lost."""
    number: int
    """The attempt that the status names at the end."""
    publisher: int
    """The attempt whose files are published, as the record on the claim says."""
    code: int | None
    """Exit code of the old runner; None when it was killed, and its pod gone before."""
    noticed_seconds: float
    """From the first sign to the number of the next attempt."""
    wrote_seconds: float
    """From the loss to the last line of the old runner."""
    wrote_late: int
    """Bytes that it wrote after the next attempt had its number."""
    repaid: int
    """Rows sent in vain."""


@asynccontextmanager
async def exits(stage: Stage, namespace: str) -> AsyncIterator[Codes]:
    """Exit codes of all runners of a namespace that are told meanwhile, also of those that went."""
    codes: Codes = {}

    def changed(key: Key, pod: Json | None) -> None:
        for one in (pod or {}).get("status", {}).get("containerStatuses", []):
            if one["name"] == RUNNER and "terminated" in one["state"]:
                codes[key[1]] = one["state"]["terminated"]["exitCode"]

    mirror = Informer(stage.api, PODS.path(namespace), changed)
    following = asyncio.create_task(mirror.follow())
    try:
        yield codes
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def survive_notice(
    batch: Batch, codes: Codes, *, taint: str | None, grace_seconds: int, dies_after: float
) -> Survival:
    """The cloud announces the end by a taint, its tool deletes the pod, and the node dies.

    Without a taint the node is drained: it is cordoned, which is no notice, and the pod evicted.
    """
    world, old = batch.shelf.stage.world, await _victim(batch)

    async def die() -> None:
        await asyncio.sleep(dies_after)
        world.end_node(old.node)

    try:
        await old.announce(taint, grace_seconds)
        await asyncio.gather(old.until_next(), die())
        status = await batch.completed(_LONGEST_WAIT)
    finally:
        world.wake(old.node)
        await old.forgive(taint)
    return await _survival(old, status, await _code_of(codes, old.pod))


async def survive_silence(batch: Batch, codes: Codes, *, deaf: bool) -> Survival:
    """The node is not heard of any more; its runner goes on, and wants to publish at its end.

    When its pod was forced out of the API, its token is void: it is `deaf` and cannot ask either
    whether it is still the current attempt.
    """
    stage, old = batch.shelf.stage, await _victim(batch)
    stage.world.silence(old.node)
    try:
        await old.until_next()
        if deaf:
            force: Json = {"gracePeriodSeconds": 0}
            await stage.api.delete(PODS.path(batch.shelf.namespace, old.pod), force)
        status = await batch.completed(_LONGEST_WAIT)
        if deaf:
            await eventually(old.said, lambda log: "attempt is not known yet" in log, within=90)
        else:
            await until_gone(batch, old.attempt)
    finally:
        stage.world.wake(old.node)
    code = None if deaf else await _code_of(codes, old.pod)
    await until_gone(batch, old.attempt)
    return await _survival(old, status, code)


async def at_work(batch: Batch) -> tuple[int, RunningContainer]:
    """The attempt in the status and its runner, once it runs."""

    async def found() -> tuple[int, RunningContainer | None]:
        attempt = await batch.number()
        return attempt, batch.running(RUNNER, attempt)

    attempt, runner = await eventually(found, lambda it: it[1] is not None, within=60)
    assert runner is not None
    return attempt, runner


async def until_gone(batch: Batch, attempt: int, within: float = 90) -> None:
    """Wait until no runner of the attempt runs, on whatever node."""

    async def left() -> RunningContainer | None:
        return batch.running(RUNNER, attempt)

    await eventually(left, lambda runner: runner is None, within=within)


def jobs_created(shelf: Shelf) -> Counter[str]:
    """How often each Job of the namespace was created, as the audit log has it."""
    found: Counter[str] = Counter()
    for line in shelf.stage.world.audit_log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        target = entry.get("objectRef", {})
        if (target.get("resource"), target.get("namespace")) != (JOBS.plural, shelf.namespace):
            continue
        found[target["name"]] += entry["responseStatus"]["code"] == HTTPStatus.CREATED
    return +found


@dataclass(slots=True)
class _Victim:
    """The runner whose node is lost."""

    batch: Batch
    attempt: int
    pod: str
    node: str
    lost_at: float = field(default_factory=time.time)
    noticed_seconds: float = 0
    written: int = 0

    async def announce(self, taint: str | None, grace_seconds: int) -> None:
        """Taint the node and delete the pod, or drain the node."""
        stage, namespace = self.batch.shelf.stage, self.batch.shelf.namespace
        if taint is not None:
            await stage.run("kubectl", "taint", "node", self.node, f"{taint}=now:NoSchedule")
            await stage.run(
                *("kubectl", "--namespace", namespace, "delete", "pod", self.pod),
                *("--ignore-not-found", "--wait=false", f"--grace-period={grace_seconds}"),
            )
            return
        await stage.run("kubectl", "cordon", self.node)
        body: Json = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": self.pod, "namespace": namespace},
            "deleteOptions": {"gracePeriodSeconds": grace_seconds},
        }
        await stage.api.create(f"{PODS.path(namespace, self.pod)}/eviction", body)

    async def forgive(self, taint: str | None) -> None:
        """Nothing keeps pods away from the node any more."""
        run = self.batch.shelf.stage.run
        if taint is not None:
            await run("kubectl", "taint", "node", self.node, f"{taint}-")
        else:
            await run("kubectl", "uncordon", self.node)

    async def until_next(self) -> None:
        await self.batch.until_attempt(self.attempt + 1)
        self.noticed_seconds = time.time() - self.lost_at
        self.written = self.size

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.parts)

    @property
    def wrote_until(self) -> float:
        return max((path.stat().st_mtime for path in self.parts), default=self.lost_at)

    @property
    def parts(self) -> list[Path]:
        folder = parts.parts_folder(self.batch.work)
        return sorted(folder.glob(f"*.attempt-{self.attempt:05}.jsonl"))

    async def said(self) -> str:
        """The log of the runner."""
        logs = self.batch.shelf.stage.world.folder / "logs" / "pods"
        (log,) = logs.glob(f"{self.batch.shelf.namespace}_{self.pod}_*/{RUNNER}/0.log")
        return log.read_text(encoding="utf-8")


async def _victim(batch: Batch) -> _Victim:
    attempt, runner = await at_work(batch)
    return _Victim(batch, attempt, runner.pod, runner.node)


async def _code_of(codes: Codes, pod: str) -> int:
    async def told() -> int | None:
        return codes.get(pod)

    code = await eventually(told, lambda one: one is not None)
    assert code is not None
    return code


async def _survival(old: _Victim, status: Json, code: int | None) -> Survival:
    record = old.batch.published()
    assert record is not None
    return Survival(
        rows=old.batch.judged(),
        old=old.attempt,
        number=number_in(status),
        publisher=record.attempt,
        code=code,
        noticed_seconds=old.noticed_seconds,
        wrote_seconds=max(0.0, old.wrote_until - old.lost_at),
        wrote_late=old.size - old.written,
        repaid=old.batch.paid_again().total(),
    )


@dataclass(frozen=True, slots=True)
class Hit:
    """One harm."""

    kind: str
    attempt: int
    seconds: float
    """Until rows came again; of the operator, until the next process ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How a batch ended that was harmed at random."""

    seed: int
    hits: tuple[Hit, ...]
    attempts: int
    rows: Rows
    repaid: Counter[str]
    """Rows sent in vain, by the harm that took them."""
    codes: Counter[int]
    """Exit codes of its runners."""
    seconds: float


async def suffer(batch: Batch, seed: int, codes: Codes, operator: asyncio.Lock) -> Story:
    """Do two to four harms to a batch at moments of the seed, and see it to its end.

    One harm at a time is done to the `operator`, which all batches share.
    """
    chance, begun = random.Random(seed), time.monotonic()  # noqa: S311 - a seeded course
    course = _Course(batch, chance, operator)
    try:
        for _ in range(chance.randint(2, 4)):
            if await course.moment():
                await course.harm(chance.choice(KINDS))
        status = await batch.completed(_LONGEST_WAIT)
    finally:
        course.wake()
    seconds = time.monotonic() - begun
    for attempt in range(1, number_in(status) + 1):
        await until_gone(batch, attempt)
    for pod in course.cut_off:
        await _code_of(codes, pod)
    own = [pod for pod in codes if pod.startswith(f"{batch.name}-a")]
    return Story(
        seed=seed,
        hits=tuple(course.hits),
        attempts=number_in(status),
        rows=batch.judged(),
        repaid=course.repaid(),
        codes=Counter(codes[pod] for pod in own),
        seconds=seconds,
    )


class _Course:
    """The harms of one batch, one after another."""

    def __init__(self, batch: Batch, chance: random.Random, operator: asyncio.Lock) -> None:
        self._batch = batch
        self._chance = chance
        self._operator = operator
        self._silent: list[str] = []
        self.cut_off: list[str] = []
        """Pods that were on silent nodes."""
        self.hits: list[Hit] = []

    async def moment(self) -> bool:
        """Some seconds or some rows after rows come; is the batch still at work?"""
        done = await self._rows_after(0)
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.uniform(0, 3))
        else:
            await self._rows_after(done + (self._batch.rows - done) * self._chance.uniform(0, 0.4))
        return not is_over((await self._batch.get())["status"])

    async def harm(self, kind: str) -> None:
        """Do it, unless what it is about is just gone, and wait until rows come again."""
        batch, world = self._batch, self._batch.shelf.stage.world
        attempt, begun = await batch.number(), time.monotonic()
        runner, engine = (batch.running(one, attempt) for one in (RUNNER, ENGINE))
        if runner is None or engine is None:
            return
        done = (await batch.progress(attempt)).get("done", 0)
        try:
            match kind:
                case "runner" | "engine":
                    world.kill(batch.shelf.namespace, runner.pod, kind)
                case "node":
                    world.end_node(runner.node)
                case "silence":
                    world.silence(runner.node)
                    self._silent.append(runner.node)
                    self.cut_off.append(runner.pod)
                case _:
                    async with self._operator:
                        await kill_operator(batch.shelf.stage)
        except WorldError:
            return
        if kind in ("runner", "node", "silence"):
            await batch.until_attempt(attempt + 1, _LONGEST_WAIT)
        if kind != "operator":
            await self._rows_after(done)
        self.hits.append(Hit(kind, attempt, time.monotonic() - begun))
        if kind == "node":
            world.wake(runner.node)
        elif kind == "silence" and self._chance.random() < 0.5:
            self.wake()

    def wake(self) -> None:
        """Silent nodes are back; what still runs there is ended."""
        for node in self._silent:
            self._batch.shelf.stage.world.wake(node)
        self._silent.clear()

    def repaid(self) -> Counter[str]:
        """Who sends a row again tells what took it: the same attempt, or one that came after."""
        engines_first = sorted(self.hits, key=lambda hit: hit.kind != "engine")
        ends = {hit.attempt: hit.kind for hit in engines_first if hit.kind != "operator"}
        found: Counter[str] = Counter()
        for (attempt, by_itself), count in self._batch.paid_again().items():
            found["engine" if by_itself else ends.get(attempt, "other")] += count
        return found

    async def _rows_after(self, rows: float) -> int:
        """Wait until the current attempt has more rows than that, or the batch is over."""

        async def seen() -> tuple[bool, Json]:
            status = (await self._batch.get()).get("status", {})
            return is_over(status), await self._batch.progress(number_in(status))

        _, progress = await eventually(
            seen,
            lambda it: it[0] or (it[1].get("state") == "running" and it[1]["done"] > rows),
            within=_LONGEST_WAIT,
        )
        return int(progress.get("done", 0))
