"""Faults for batches, and their results: lost nodes, and random faults."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from demo.cluster import InstalledCluster, Json, condition
from scenarios.batches import (
    LONGEST_WAIT_SECONDS,
    Batch,
    BatchNamespace,
    RowCounts,
    attempt_number,
    is_finished,
)
from scenarios.kills import kill_operator
from tessera.batch_runner.answers import parts
from tessera.domain.batch.names import RUNNER, job_name
from tessera.domain.hardware.spot_nodes import DISRUPTION_TAINTS
from tessera.domain.names import ENGINE
from tessera.resources.api_resources import JOBS, NODES, PODS
from world import WorldError
from world.client import RunningContainer
from world.informer import Informer, Key
from world.testing import eventually

# The taints that a cloud or its tools set; the others are Kubernetes' own.
CLOUD_TAINTS = tuple(sorted(key for key in DISRUPTION_TAINTS if "node.kubernetes.io/" not in key))
# What is killed with -9, or cut off from the API.
FAULT_KINDS = ("runner", "engine", "node", "silence", "operator")


@dataclass(slots=True)
class RunnerRecord:
    """What became of the runners of a namespace, also of those whose pods are deleted."""

    exit_codes: dict[str, int] = field(default_factory=dict)
    """By pod."""
    lost_pods: set[str] = field(default_factory=set)
    """Pods on nodes that the control plane declared lost, rightly or not."""
    _nodes: dict[str, str] = field(default_factory=dict)
    _lost_nodes: set[str] = field(default_factory=set)

    def record_pod(self, key: Key, pod: Json | None) -> None:
        """Record the node of a pod, and the exit code of its runner."""
        if pod is None:
            return
        for container in pod.get("status", {}).get("containerStatuses", []):
            if container["name"] == RUNNER and "terminated" in container["state"]:
                self.exit_codes[key[1]] = container["state"]["terminated"]["exitCode"]
        self._nodes[key[1]] = node = pod["spec"].get("nodeName", "")
        if node in self._lost_nodes:
            self.lost_pods.add(key[1])

    def record_node(self, key: Key, node: Json | None) -> None:
        """Record whether a node is ready."""
        if node is not None and condition(node, "Ready").get("status") == "True":
            self._lost_nodes.discard(key[1])
            return
        self._lost_nodes.add(key[1])
        self.lost_pods |= {pod for pod, name in self._nodes.items() if name == key[1]}

    def count_lost(self, batch: Batch, attempts: Iterable[int]) -> int:
        """Count the attempts of a batch whose node was declared lost."""
        prefixes = [f"{job_name(batch.name, attempt)}-" for attempt in attempts]
        return sum(any(pod.startswith(prefix) for pod in self.lost_pods) for prefix in prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLossResult:
    """A batch that lost the node of an attempt, once it is completed and the node is back."""

    rows: RowCounts
    lost_attempt: int
    """The attempt whose node was lost."""
    other_losses: int
    """Other attempts whose nodes were declared lost, as late nodes of a busy machine are."""
    final_attempt: int
    """The attempt that the status names at the end."""
    publisher: int
    """The attempt whose files are published, as the record on the claim says."""
    exit_code: int | None
    """Exit code of the old runner; None when its pod was deleted before it ended."""
    noticed_seconds: float
    """From the first sign to the number of the next attempt."""
    wrote_seconds: float
    """From the loss to the last line of the old runner."""
    late_bytes: int
    """Bytes that it wrote after the next attempt had its number."""
    resent_rows: int
    """Rows that were sent again."""


@asynccontextmanager
async def record_runners(cluster: InstalledCluster, namespace: str) -> AsyncIterator[RunnerRecord]:
    """Record the runners of a namespace, and the nodes that are declared lost."""
    record = RunnerRecord()
    informers = (
        Informer(cluster.api, PODS.path(namespace), record.record_pod),
        Informer(cluster.api, NODES.path(None), record.record_node),
    )
    tasks = [asyncio.create_task(informer.follow()) for informer in informers]
    try:
        yield record
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def lose_node_with_notice(
    batch: Batch, record: RunnerRecord, *, taint: str | None, grace_seconds: int, dies_after: float
) -> NodeLossResult:
    """Announce the end of the node by a taint, delete the pod as its tool does, and end the node.

    Without a taint the node is drained: it is cordoned, which is no notice, and the pod evicted.
    """
    world, runner = batch.namespace.cluster.world, await _find_runner(batch)

    async def end_node() -> None:
        await asyncio.sleep(dies_after)
        world.end_node(runner.node)

    try:
        await runner.announce_end(taint, grace_seconds)
        await asyncio.gather(runner.wait_for_next_attempt(), end_node())
        status = await batch.wait_until_completed()
    finally:
        world.wake(runner.node)
        await runner.allow_pods(taint)
    code = await _wait_for_exit_code(record, runner.pod)
    return _node_loss_result(runner, record, status, code)


async def lose_silent_node(
    batch: Batch, record: RunnerRecord, *, delete_pod: bool
) -> NodeLossResult:
    """Cut the node off from the API; its runner goes on, and tries to publish at its end.

    With `delete_pod` its pod is forced out of the API, and its token becomes invalid: then it
    cannot ask either whether it is still the current attempt.
    """
    cluster, runner = batch.namespace.cluster, await _find_runner(batch)
    cluster.world.silence(runner.node)
    try:
        await runner.wait_for_next_attempt()
        if delete_pod:
            force: Json = {"gracePeriodSeconds": 0}
            await cluster.api.delete(PODS.path(batch.namespace.name, runner.pod), force)
        status = await batch.wait_until_completed()
        if delete_pod:
            await eventually(runner.asks_in_vain)
        else:
            await wait_until_runner_ends(batch, runner.attempt)
    finally:
        cluster.world.wake(runner.node)
    code = None if delete_pod else await _wait_for_exit_code(record, runner.pod)
    await wait_until_runner_ends(batch, runner.attempt)
    return _node_loss_result(runner, record, status, code)


async def wait_for_runner(batch: Batch) -> tuple[int, RunningContainer]:
    """Wait until the attempt of the status has a runner; return both."""

    async def attempt_has_runner() -> tuple[int, RunningContainer]:
        attempt = await batch.current_attempt()
        runner = batch.running_container(RUNNER, attempt)
        assert runner is not None, attempt
        return attempt, runner

    return await eventually(attempt_has_runner)


async def wait_until_runner_ends(batch: Batch, attempt: int) -> None:
    """Wait until no runner of the attempt runs, on whatever node."""

    async def runner_has_ended() -> None:
        assert batch.running_container(RUNNER, attempt) is None

    await eventually(runner_has_ended)


def count_created_jobs(namespace: BatchNamespace) -> Counter[str]:
    """Count how often each Job of the namespace was created, by the audit log."""
    counts: Counter[str] = Counter()
    for line in namespace.cluster.world.audit_log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        target = entry.get("objectRef", {})
        if (target.get("resource"), target.get("namespace")) != (JOBS.plural, namespace.name):
            continue
        counts[target["name"]] += entry["responseStatus"]["code"] == HTTPStatus.CREATED
    return +counts


@dataclass(slots=True)
class _LostRunner:
    """The runner whose node is lost."""

    batch: Batch
    attempt: int
    pod: str
    node: str
    lost_at: float = field(default_factory=time.time)
    noticed_seconds: float = 0
    noticed_size: int = 0

    async def announce_end(self, taint: str | None, grace_seconds: int) -> None:
        """Taint the node and delete the pod, or drain the node."""
        cluster, namespace = self.batch.namespace.cluster, self.batch.namespace.name
        if taint is not None:
            await cluster.run("kubectl", "taint", "node", self.node, f"{taint}=now:NoSchedule")
            await cluster.run(
                *("kubectl", "--namespace", namespace, "delete", "pod", self.pod),
                *("--ignore-not-found", "--wait=false", f"--grace-period={grace_seconds}"),
            )
            return
        await cluster.run("kubectl", "cordon", self.node)
        body: Json = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": self.pod, "namespace": namespace},
            "deleteOptions": {"gracePeriodSeconds": grace_seconds},
        }
        await cluster.api.create(f"{PODS.path(namespace, self.pod)}/eviction", body)

    async def allow_pods(self, taint: str | None) -> None:
        """Remove the taint, or uncordon the node."""
        run = self.batch.namespace.cluster.run
        if taint is not None:
            await run("kubectl", "taint", "node", self.node, f"{taint}-")
        else:
            await run("kubectl", "uncordon", self.node)

    async def wait_for_next_attempt(self) -> None:
        await self.batch.wait_for_attempt(self.attempt + 1)
        self.noticed_seconds = time.time() - self.lost_at
        self.noticed_size = self.size

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.parts)

    @property
    def last_write(self) -> float:
        return max((path.stat().st_mtime for path in self.parts), default=self.lost_at)

    @property
    def parts(self) -> list[Path]:
        folder = parts.parts_folder(self.batch.work_folder)
        return sorted(folder.glob(f"*.attempt-{self.attempt:05}.jsonl"))

    async def asks_in_vain(self) -> None:
        """Assert that its log says so."""
        logs = self.batch.namespace.cluster.world.folder / "logs" / "pods"
        (log,) = logs.glob(f"{self.batch.namespace.name}_{self.pod}_*/{RUNNER}/0.log")
        assert "attempt is not known yet" in log.read_text(encoding="utf-8")


async def _find_runner(batch: Batch) -> _LostRunner:
    attempt, runner = await wait_for_runner(batch)
    return _LostRunner(batch, attempt, runner.pod, runner.node)


async def _wait_for_exit_code(record: RunnerRecord, pod: str) -> int:
    async def has_exit_code() -> int:
        assert pod in record.exit_codes
        return record.exit_codes[pod]

    return await eventually(has_exit_code)


def _node_loss_result(
    runner: _LostRunner, record: RunnerRecord, status: Json, code: int | None
) -> NodeLossResult:
    published, final_attempt = runner.batch.publication_record(), attempt_number(status)
    assert published is not None
    others = [attempt for attempt in range(1, final_attempt) if attempt != runner.attempt]
    return NodeLossResult(
        rows=runner.batch.count_rows(),
        lost_attempt=runner.attempt,
        other_losses=record.count_lost(runner.batch, others),
        final_attempt=final_attempt,
        publisher=published.attempt,
        exit_code=code,
        noticed_seconds=runner.noticed_seconds,
        wrote_seconds=max(0.0, runner.last_write - runner.lost_at),
        late_bytes=runner.size - runner.noticed_size,
        resent_rows=runner.batch.count_resent_rows().total(),
    )


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault that was injected."""

    kind: str
    attempt: int
    seconds: float
    """Time until rows were completed again; for the operator, until its next process ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosResult:
    """How a batch with random faults ended."""

    seed: int
    faults: tuple[InjectedFault, ...]
    attempts: int
    rows: RowCounts
    resent_rows: Counter[str]
    """Rows that were sent again, by the fault that lost their first request."""
    codes: Counter[int]
    """Exit codes of its runners."""
    seconds: float


async def run_with_faults(
    batch: Batch, seed: int, record: RunnerRecord, operator: asyncio.Lock
) -> ChaosResult:
    """Inject two to four faults into a batch at times of the seed, and wait for its end.

    The lock `operator` allows one fault at a time of the operator, which all batches share.
    """
    rng, started_at = random.Random(seed), time.monotonic()  # noqa: S311 - a seeded course
    injector = _FaultInjector(batch, rng, operator)
    try:
        for _ in range(rng.randint(2, 4)):
            if await injector.wait_for_moment():
                await injector.inject(rng.choice(FAULT_KINDS))
        status = await batch.wait_until_completed()
    finally:
        injector.wake_nodes()
    seconds = time.monotonic() - started_at
    for attempt in range(1, attempt_number(status) + 1):
        await wait_until_runner_ends(batch, attempt)
    for pod in injector.silenced_pods:
        await _wait_for_exit_code(record, pod)
    pods = [pod for pod in record.exit_codes if pod.startswith(f"{batch.name}-a")]
    return ChaosResult(
        seed=seed,
        faults=tuple(injector.faults),
        attempts=attempt_number(status),
        rows=batch.count_rows(),
        resent_rows=injector.count_resent_rows(),
        codes=Counter(record.exit_codes[pod] for pod in pods),
        seconds=seconds,
    )


class _FaultInjector:
    """Injects the faults of one batch, one after another."""

    def __init__(self, batch: Batch, rng: random.Random, operator: asyncio.Lock) -> None:
        self._batch = batch
        self._rng = rng
        self._operator = operator
        self._silent_nodes: list[str] = []
        self.silenced_pods: list[str] = []
        """Pods that were on silent nodes."""
        self.faults: list[InjectedFault] = []

    async def wait_for_moment(self) -> bool:
        """Wait some seconds or some rows; return whether the batch is still running."""
        done = await self._wait_for_rows(0)
        if self._rng.random() < 0.5:
            await asyncio.sleep(self._rng.uniform(0, 3))
        else:
            await self._wait_for_rows(done + (self._batch.rows - done) * self._rng.uniform(0, 0.4))
        return not is_finished(await self._batch.status())

    async def inject(self, kind: str) -> None:
        """Inject a fault unless its target is gone, and wait until rows are completed again."""
        batch, world = self._batch, self._batch.namespace.cluster.world
        attempt, started_at = await batch.current_attempt(), time.monotonic()
        runner, engine = (
            batch.running_container(container, attempt) for container in (RUNNER, ENGINE)
        )
        if runner is None or engine is None:
            return
        done = (await batch.progress(attempt)).get("done", 0)
        try:
            match kind:
                case "runner" | "engine":
                    world.kill(batch.namespace.name, runner.pod, kind)
                case "node":
                    world.end_node(runner.node)
                case "silence":
                    world.silence(runner.node)
                    self._silent_nodes.append(runner.node)
                    self.silenced_pods.append(runner.pod)
                case _:
                    async with self._operator:
                        await kill_operator(batch.namespace.cluster)
        except WorldError:
            return
        if kind in ("runner", "node", "silence"):
            await batch.wait_for_attempt(attempt + 1)
        if kind != "operator":
            await self._wait_for_rows(done)
        self.faults.append(InjectedFault(kind, attempt, time.monotonic() - started_at))
        if kind == "node":
            world.wake(runner.node)
        elif kind == "silence" and self._rng.random() < 0.5:
            self.wake_nodes()

    def wake_nodes(self) -> None:
        """Connect the silent nodes again; what still runs there ends."""
        for node in self._silent_nodes:
            self._batch.namespace.cluster.world.wake(node)
        self._silent_nodes.clear()

    def count_resent_rows(self) -> Counter[str]:
        """Count rows sent again by their fault: an engine's if the same attempt sent them again."""
        engines_first = sorted(self.faults, key=lambda fault: fault.kind != "engine")
        ends = {fault.attempt: fault.kind for fault in engines_first if fault.kind != "operator"}
        counts: Counter[str] = Counter()
        for (attempt, same_attempt), count in self._batch.count_resent_rows().items():
            counts["engine" if same_attempt else ends.get(attempt, "other")] += count
        return counts

    async def _wait_for_rows(self, rows: float) -> int:
        """Wait until the current attempt has more rows than that, or the batch is finished."""

        async def are_completed() -> int:
            status = await self._batch.status()
            progress = await self._batch.progress(attempt_number(status))
            if not is_finished(status):
                assert progress.get("state") == "running", progress
                assert progress["done"] > rows, progress
            return int(progress.get("done", 0))

        return await eventually(are_completed, within=LONGEST_WAIT_SECONDS)
