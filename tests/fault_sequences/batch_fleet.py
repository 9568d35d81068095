"""A batch on a fleet in memory: the real operator and the real runner, under one simulated clock.

The control plane, the kubelets and the engines are simulated. The runner's files are real, and so
are its requests to the engine, on addresses of this machine.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from kubernetes import client
from typing_extensions import override

from fakevolume.faulty_volume import FaultyVolume
from tessera.adapters.kube.attempt_fence import KubeFence
from tessera.adapters.kube.client import KubeCluster
from tessera.batch_runner import main as runner_main
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.progress import Progress, write_report
from tessera.batch_runner.run import KILLED_MESSAGE, AttemptRunner
from tessera.domain.batch.names import BATCH_ACCOUNT, BATCH_LABEL, RUNNER_PORT
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, BATCH_INFERENCES
from tessera.domain.observed.runner_reports import RunnerProgress, runner_progress
from tessera.ports import ClockReading, ClusterError
from tessera.reconcile.trusted_clock import TrustedClock
from tessera.resources.api_resources import CLAIMS, JOBS, NODES, PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW, SMALL
from tests.fault_sequences.fake_engine import EngineState, serve_engine
from tests.fault_sequences.processes import (
    ProcessLoop,
    ProcessTable,
    SimulatedClock,
    SimulatedProcess,
)
from tests.memory_operator import MemoryOperator, SilentEngines

Body = dict[str, Any]
Row = tuple[str, str]
"""The custom_id of a row and its prompt."""

NIGHT = ObjectKey(BATCH_INFERENCES.plural, "team-a", "night")
_ACCOUNT = ObjectKey("serviceaccounts", "team-a", BATCH_ACCOUNT)
# An input must not fit into the runner's read buffer of 1 MiB.
_BACKGROUND = {"role": "system", "content": "word " * 4000}
_CLAIM_PATH = "/claim/"
_CONCURRENCY = 8
_CYCLE_SECONDS = 5
_ENGINE_SECONDS, _RUNNER_SECONDS = 2, 4
_GRACE_SECONDS = 12
# A kubelet ends the containers of a pod that was deleted by force.
_ORPHAN_SECONDS = 5


@dataclass(slots=True, eq=False)
class KubeletPod:
    """What a kubelet runs for a pod."""

    key: ObjectKey
    uid: str
    arguments: list[str]
    node: str
    address: str
    bound: float
    report: Path
    account: str | None = None
    """The uid of the ServiceAccount whose token it has."""
    engine: SimulatedProcess | None = None
    runner: SimulatedProcess | None = None
    attempt: AttemptRunner | None = None
    stop: asyncio.Event | None = None
    stopping_since: float | None = None
    cut_off: bool = False
    """Its node does not reach the API server."""
    finished: bool = False

    @property
    def processes(self) -> list[SimulatedProcess]:
        return [process for process in (self.engine, self.runner) if process is not None]

    @property
    def works(self) -> bool:
        """Whether its runner is answering rows."""
        return (
            self.attempt is not None
            and self.runner is not None
            and not self.runner.ended
            and runner_state(self.attempt) == "running"
        )


def runner_state(attempt: AttemptRunner) -> str:
    return str(attempt._progress.as_dict()["state"])


@dataclass(slots=True)
class _ApiOfPod:
    """The requests of a runner's fence."""

    fleet: "BatchFleet"
    pod: KubeletPod

    async def request(self, method: str, path: str) -> tuple[int, Any]:
        del method, path
        if self.pod.cut_off or self.fleet.api_away:
            raise ClusterError("get: the API server does not answer")
        objects = self.fleet.cluster.objects
        account = objects.get(_ACCOUNT, {"metadata": {}})["metadata"].get("uid")
        if account is None or account != self.pod.account:
            return 401, {"message": "Unauthorized"}
        body = objects.get(NIGHT)
        return (404, {"message": "not found"}) if body is None else (200, body)


class _RunningEngines(SilentEngines):
    """Asks the runners of a fleet for their progress."""

    def __init__(self) -> None:
        self.fleet: BatchFleet | None = None

    @override
    async def progress(self, address: str) -> RunnerProgress | None:
        host = address.removesuffix(f":{RUNNER_PORT}")
        pods = self.fleet.pods if self.fleet is not None else {}
        for pod in pods.values():
            if pod.address == host and pod.attempt is not None and not pod.cut_off:
                assert pod.runner is not None
                if not (pod.runner.ended or pod.runner.frozen):
                    return runner_progress(json.dumps(pod.attempt._progress.as_dict()))
        return None


class _Operator(MemoryOperator):
    """An operator whose wall clock can jump."""

    def __init__(self, clock: SimulatedClock, engines: _RunningEngines) -> None:
        self.jump = timedelta()
        self._seconds = clock
        self._trusted = TrustedClock(
            lambda: self.true_time() + self.jump,
            lambda: clock.now,
            lambda: ClockReading(self.true_time(), clock.now),
        )
        super().__init__(engines=engines)

    def true_time(self) -> datetime:
        return NOW + timedelta(seconds=self._seconds.now)

    @override
    def _now(self) -> datetime:
        return self._trusted()


class BatchFleet:
    """One batch, its volume, its operator, and nodes of a spot and of another pool."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.claim = folder / "claim"
        self.claim.mkdir(parents=True)
        self.table = ProcessTable()
        self.volume = FaultyVolume(self.claim)
        self.engine = EngineState()
        self.pods: dict[str, KubeletPod] = {}
        self.all_pods: list[KubeletPod] = []
        self.api_away = False
        self.quota: str | None = None
        """Why no pod may be created."""
        self.operator_down = False
        self.deleted_at: float | None = None
        self.versions: list[list[Row]] = []
        """Every content of the input: a result is of one of them."""
        engines = _RunningEngines()
        self.operator = _Operator(self.table.clock, engines)
        engines.fleet = self
        self.cluster = self.operator.cluster
        self._operator_loop = ProcessLoop(self.table.clock)
        self._created = 0
        self._serializer = client.ApiClient()
        self._dead_nodes: set[str] = set()
        self._add_nodes()
        self.write_input([(f"row-{number}", f"echo row-{number}") for number in range(rows)])
        self._add_batch()

    # Users

    @property
    def input(self) -> Path:
        return self.claim / "in.jsonl"

    def write_input(self, rows: list[Row], *, in_place: bool = False) -> None:
        """Write the input as a new file, or over the old one as `cp` does."""
        self.versions.append(rows)
        text = "".join(f"{json.dumps(_row(*row))}\n" for row in rows)
        target = self.input if in_place else self.input.with_suffix(".new")
        target.write_text(text, encoding="utf-8")
        if not in_place:
            target.replace(self.input)

    def set_suspended(self, *, suspended: bool) -> None:
        if NIGHT in self.cluster.objects:
            self.cluster.objects[NIGHT]["spec"]["suspend"] = suspended
            self.cluster.objects[NIGHT]["metadata"]["generation"] += 1
            self.cluster.touch(NIGHT)

    def delete_batch(self, *, orphan: bool = False, finalizer: bool = False) -> None:
        """Delete the batch; with a finalizer it stays for a while, as an orphan its Jobs stay."""
        self.deleted_at = self.now
        if finalizer:
            self.cluster.objects[NIGHT]["metadata"]["deletionTimestamp"] = _wire(self.true_time)
            self.cluster.touch(NIGHT)
            return
        uid = self.cluster.objects[NIGHT]["metadata"]["uid"]
        self.cluster.discard(NIGHT)
        for key, body in list(self.cluster.objects.items()):
            owners = body["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == uid for owner in owners):
                if orphan:
                    body["metadata"]["ownerReferences"] = []
                    self.cluster.touch(key)
                else:
                    self.cluster.discard(key)

    # Observations

    @property
    def now(self) -> float:
        return self.table.clock.now

    @property
    def true_time(self) -> datetime:
        return self.operator.true_time()

    @property
    def status(self) -> Body:
        status: Body = self.cluster.objects.get(NIGHT, {}).get("status", {})
        return status

    @property
    def state(self) -> str:
        return str(self.status.get("state", ""))

    def working_pods(self) -> list[KubeletPod]:
        return [pod for pod in self.pods.values() if pod.works]

    def live_processes(self) -> list[SimulatedProcess]:
        return [
            process
            for pod in self.all_pods
            for process in pod.processes
            if not (process.ended or pod.node in self._dead_nodes)
        ]

    # Time

    def step(self) -> None:
        """Let one second pass."""
        self._run_jobs()
        self._run_kubelets()
        self.table.run_until(self.now + 1)
        if int(self.now) % _CYCLE_SECONDS == 0 and not (self.operator_down or self.api_away):
            self._reconcile()

    def _reconcile(self) -> None:
        loop = self._operator_loop
        task = loop.create_task(self.operator.reconcile())
        while not task.done():
            loop.run_ready()
        task.result()
        for _ in range(5):  # what the prober asked
            loop.run_ready()

    # The control plane

    def _add_nodes(self) -> None:
        for pool, tier, price, count in (("spot", "Spot", "0.8", 3), ("a100", "OnDemand", "2", 1)):
            prices = [{"from": "2026-01-01", "perGPUHour": price}]
            spec = {"nodeSelector": {"pool": pool}, "tier": tier, "prices": prices}
            self.cluster.put(ACCELERATOR_POOLS, {"metadata": {"name": pool}, "spec": spec})
            for number in range(count):
                self.add_node(f"{pool}-{number}")

    def add_node(self, name: str) -> None:
        labels = {
            "pool": name.partition("-")[0],
            "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
            "nvidia.com/gpu.count": "1",
        }
        status = {
            "allocatable": {"nvidia.com/mig-1g.10gb": "7"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self._dead_nodes.discard(name)
        self.cluster.put(NODES, {"metadata": {"name": name, "labels": labels}, "status": status})

    def _add_batch(self) -> None:
        claim = {
            "metadata": {"name": "data", "namespace": "team-a"},
            "spec": {"accessModes": ["ReadWriteMany"]},
        }
        self.cluster.put(CLAIMS, claim)
        spec = {
            "claimName": "data",
            "input": "in.jsonl",
            "output": "out.jsonl",
            "model": {"uri": SMALL},
        }
        meta = {
            "name": NIGHT.name,
            "namespace": NIGHT.namespace,
            "creationTimestamp": _wire(NOW),
        }
        self.cluster.put(BATCH_INFERENCES, {"metadata": meta, "spec": spec})

    def _bodies(self, plural: str) -> Iterator[tuple[ObjectKey, Body]]:
        for key in sorted(key for key in self.cluster.objects if key.plural == plural):
            yield key, self.cluster.objects[key]

    def _run_jobs(self) -> None:
        """The Job controller and the scheduler."""
        owners = {
            owner["uid"]
            for _, body in self._bodies(PODS.plural)
            for owner in body["metadata"]["ownerReferences"]
        }
        for key, job in list(self._bodies(JOBS.plural)):
            finished = job.get("status", {}).get("conditions")
            suspended = job["spec"].get("suspend")
            if job["metadata"]["uid"] not in owners and not finished and not suspended:
                self._create_pod(key, job)
        jobs = {job["metadata"]["uid"] for _, job in self._bodies(JOBS.plural)}
        for key, body in list(self._bodies(PODS.plural)):
            if not any(owner["uid"] in jobs for owner in body["metadata"]["ownerReferences"]):
                self._terminate(key)
            elif "nodeName" not in body["spec"]:
                self._bind(key, body)

    def _create_pod(self, job_key: ObjectKey, job: Body) -> None:
        if self.quota is not None:
            return
        self._created += 1
        template: Body = self._serializer.sanitize_for_serialization(job["spec"]["template"])  # type: ignore[no-untyped-call] # it has no types
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job_key.name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        meta = {
            "name": f"{job_key.name}-{self._created}",
            "namespace": job_key.namespace,
            "labels": template["metadata"]["labels"],
            "creationTimestamp": _wire(self.true_time),
            "ownerReferences": [owner],
        }
        self.cluster.put(PODS, {"metadata": meta, "spec": template["spec"]}, "job-controller")

    def _bind(self, key: ObjectKey, body: Body) -> None:
        selector = body["spec"].get("nodeSelector", {})
        for node_key, node in self._bodies(NODES.plural):
            ready = node["status"]["conditions"][0]["status"] == "True"
            labels = node["metadata"]["labels"]
            tainted = node.get("spec", {}).get("taints")
            if ready and not tainted and selector.items() <= labels.items():
                self._admit(key, body, node_key.name)
                return

    def _admit(self, key: ObjectKey, body: Body, node: str) -> None:
        uid = body["metadata"]["uid"]
        number = len(self.all_pods) + 1
        address = f"127.77.{number // 250}.{number % 250 + 1}"
        (container,) = body["spec"]["containers"]
        report = self.folder / f"report-{number}"
        arguments = [
            argument.replace("$(POD_IP)", address)
            .replace(_CLAIM_PATH, f"{self.claim}/")
            .replace("/dev/termination-log", str(report))
            for argument in container["args"]
        ]
        account = self.cluster.objects.get(_ACCOUNT, {"metadata": {}})["metadata"].get("uid")
        pod = KubeletPod(key, uid, arguments, node, address, self.now, report, account)
        self.pods[uid] = pod
        self.all_pods.append(pod)
        body["spec"]["nodeName"] = node
        scheduled = {
            "type": "PodScheduled",
            "status": "True",
            "lastTransitionTime": _wire(self.true_time),
        }
        body["status"] = {"phase": "Pending", "podIP": address, "conditions": [scheduled]}
        self.cluster.touch(key)

    def _terminate(self, key: ObjectKey) -> None:
        meta = self.cluster.objects[key]["metadata"]
        if meta["uid"] not in self.pods:
            self.cluster.discard(key)
        elif "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = _wire(self.true_time)
            self.cluster.touch(key)

    # The kubelets

    def _run_kubelets(self) -> None:
        for pod in list(self.pods.values()):
            if pod.node in self._dead_nodes:
                continue
            body = self.cluster.objects.get(pod.key)
            exists = body is not None and body["metadata"]["uid"] == pod.uid
            if not pod.cut_off and (
                not exists or "deletionTimestamp" in cast(Body, body)["metadata"]
            ):
                self._stop(pod, _GRACE_SECONDS if exists else _ORPHAN_SECONDS)
            elif not pod.finished:
                self._run_pod(pod)
            if pod.stopping_since is not None and all(process.ended for process in pod.processes):
                self.pods.pop(pod.uid)
                if exists:
                    self.cluster.discard(pod.key)
            elif pod.runner is not None and pod.runner.ended and not pod.finished:
                self._finish(pod, pod.runner.exit_code)

    def _stop(self, pod: KubeletPod, grace: float) -> None:
        """SIGTERM first, then SIGKILL."""
        if pod.stopping_since is None:
            pod.stopping_since = self.now
            if pod.stop is not None and pod.runner is not None and not pod.runner.ended:
                pod.runner.loop.call_soon(pod.stop.set)
        runner_ended = pod.runner is None or pod.runner.ended
        if runner_ended or self.now - pod.stopping_since >= grace:
            for process in pod.processes:
                process.kill()

    def _run_pod(self, pod: KubeletPod) -> None:
        age = self.now - pod.bound
        command = pod.arguments[0]
        if command == "check":
            if age >= _ENGINE_SECONDS:
                arguments = runner_main._parser().parse_args(pod.arguments)
                self._finish(
                    pod, runner_main._check_input(arguments, WorkHeartbeat(time.monotonic))
                )
            return
        if pod.engine is None and age >= _ENGINE_SECONDS:
            self.start_engine(pod)
        if pod.runner is None and age >= _RUNNER_SECONDS:
            pod.runner = self.table.start("runner", self._run_attempt(pod))
            running = {"running": {"startedAt": _wire(self.true_time)}}
            self._set_container(pod, running, "Running")

    def start_engine(self, pod: KubeletPod) -> None:
        pod.engine = self.table.start("engine", serve_engine(pod.address, 8000, self.engine))

    async def _run_attempt(self, pod: KubeletPod) -> int:
        arguments = runner_main._parser().parse_args(pod.arguments)
        arguments.concurrency = _CONCURRENCY
        pod.stop = asyncio.Event()
        killed = Progress(arguments.attempt).report("failed", KILLED_MESSAGE)
        write_report(arguments.report, killed)
        requests = cast(KubeCluster, _ApiOfPod(self, pod))
        fence = KubeFence(requests, NIGHT.namespace, NIGHT.name, uid=arguments.work.name)
        pod.attempt = AttemptRunner(runner_main._options(arguments), fence, pod.stop)
        return await pod.attempt.run()

    def _finish(self, pod: KubeletPod, code: int) -> None:
        if pod.cut_off:
            return
        pod.finished = True
        if pod.engine is not None:
            pod.engine.kill()
        message = pod.report.read_text(encoding="utf-8") if pod.report.exists() else ""
        at = _wire(self.true_time)
        terminated = {"exitCode": code, "message": message, "finishedAt": at, "startedAt": at}
        self._set_container(pod, {"terminated": terminated}, "Failed" if code else "Succeeded")
        owner = self.cluster.objects.get(pod.key, {"metadata": {}})["metadata"]
        for reference in owner.get("ownerReferences", ()):
            key = ObjectKey(JOBS.plural, pod.key.namespace, reference["name"])
            if key in self.cluster.objects:
                condition = {"type": "Failed" if code else "Complete", "status": "True"}
                self.cluster.objects[key]["status"] = {"conditions": [condition]}
                self.cluster.touch(key)

    def _set_container(self, pod: KubeletPod, state: Mapping[str, Any], phase: str) -> None:
        body = self.cluster.objects.get(pod.key)
        if body is None or body["metadata"]["uid"] != pod.uid:
            return
        name = body["spec"]["containers"][0]["name"]
        body["status"]["containerStatuses"] = [{"name": name, "state": dict(state)}]
        body["status"]["phase"] = phase
        self.cluster.touch(pod.key)

    # Nodes

    def lose_node(self, name: str, *, dead: bool = True) -> None:
        """The node is not Ready any more: it is dead, or only cut off."""
        self.cluster.objects[ObjectKey(NODES.plural, "", name)]["status"]["conditions"] = [
            {"type": "Ready", "status": "Unknown"}
        ]
        self.cluster.touch(ObjectKey(NODES.plural, "", name))
        for pod in self.pods.values():
            if pod.node == name:
                pod.cut_off = True
                for process in pod.processes if dead else ():
                    process.kill()
        if dead:
            self._dead_nodes.add(name)

    def return_node(self, name: str) -> None:
        """The node is there again; a dead one boots without its pods."""
        for uid, pod in list(self.pods.items()):
            if pod.node == name:
                pod.cut_off = False
                if name in self._dead_nodes:
                    self.pods.pop(uid)
                    self.cluster.discard(pod.key)
        self.add_node(name)

    def jobs_without_pods(self) -> Counter[str]:
        owners = {
            owner["uid"]
            for _, body in self._bodies(PODS.plural)
            for owner in body["metadata"]["ownerReferences"]
        }
        return Counter(
            key.name
            for key, job in self._bodies(JOBS.plural)
            if job["metadata"]["uid"] not in owners
        )

    def batch_jobs(self) -> list[ObjectKey]:
        return [
            key
            for key, body in self._bodies(JOBS.plural)
            if BATCH_LABEL in body["metadata"].get("labels", {})
        ]


def _row(custom_id: str, prompt: str) -> Body:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [_BACKGROUND, {"role": "user", "content": prompt}], "max_tokens": 20},
    }


def _wire(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
