"""A gated service in a cluster in memory, whose pods start and whose Jobs report as a test says."""

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from zlib import crc32

from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.domain.observed.snapshot import PodReading, Readings, Ref
from tessera.domain.quality import names as gate_names
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.resources.api_resources import CONTROLLER_REVISIONS, DEPLOYMENTS, JOBS, NODES, PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL
from tests.memory_operator import CHAT, MemoryOperator, add_pool_and_node, replica_of

GATE = ObjectKey(QUALITY_GATES.plural, "team-a", "answers")
ROLLOUT = {"strategy": "Gated", "gateRef": "answers"}
SUITE = "5" * 64
FAILED, PASSED = {"verdict": "Failed", "message": "a loss of 12 points"}, {"verdict": "Passed"}


class GatedOperator(MemoryOperator):
    """An operator with one gated service on seven slices."""

    def __init__(self, scaling: Mapping[str, Any] | None = None) -> None:
        self.fields: dict[str, Any] = {"rollout": ROLLOUT, "scaling": scaling or {"minReplicas": 1}}
        self.waiting = 0.0
        """Requests that wait at each replica."""
        self.hanging = False
        """Engines of new replicas never get ready."""
        self.broken = ""
        """Neither do engines with this argument, if any."""
        self.unbound = False
        """No node takes new replicas."""
        super().__init__()
        add_pool_and_node(self)
        self.serve(**self.fields)
        self.put_gate()

    def set_slices(self, count: int) -> None:
        """Let the node have so many slices."""
        (node,) = self.keys(NODES.plural)
        self.body(node)["status"]["allocatable"] = {"nvidia.com/mig-1g.10gb": str(count)}
        self.cluster.touch(node)

    def break_replicas(self) -> None:
        """Let the containers of all replicas fail from now on."""
        for pod in self.keys(PODS.plural):
            body, at = self.body(pod), f"{self.at:%Y-%m-%dT%H:%M:%SZ}"
            if body["metadata"]["ownerReferences"][0]["kind"] != "ReplicaSet":
                continue
            for each in body["status"]["conditions"]:
                if each["type"] in {"ContainersReady", "Ready"}:
                    each |= {"status": "False", "lastTransitionTime": at}
            state = {"waiting": {"reason": "ImagePullBackOff", "message": "pull image"}}
            body["status"]["containerStatuses"] = [
                {"name": "engine", "ready": False, "state": state}
            ]
            self.cluster.touch(pod)

    def put_gate(self, **spec: Any) -> None:
        suite = {"suite": {"configMap": {"name": "suite"}}, **spec}
        existing = self.cluster.objects.get(GATE, {})
        meta = existing.get("metadata", {"name": GATE.name, "namespace": GATE.namespace})
        self.cluster.put(QUALITY_GATES, {"metadata": meta, "spec": suite})

    def edit(self, change: int = 0, **spec: Any) -> None:
        """Write the service with a flag of its engine that is in no other version."""
        engine = {"engine": {"extraArgs": [f"--seed={change}"]}} if change else {}
        body = self.body(CHAT)
        # Not by `put`, whose manager would own the status as well.
        body["spec"] = {"model": {"uri": SMALL}, **self.fields, **engine, **spec}
        body["metadata"]["generation"] = body["metadata"].get("generation", 1) + 1
        self.cluster.touch(CHAT)

    async def step(self, seconds: float = 5) -> ReconcileOutcome:
        """Run the controllers of the cluster, then a cycle."""
        self.at += timedelta(seconds=seconds)
        busy = float(self.waiting > 0)
        reading = PodReading(waiting=self.waiting, running=8 * busy, activity=busy)
        pods = {Ref(pod.namespace, pod.name): reading for pod in self.keys(PODS.plural)}
        finished = {Ref(CHAT.namespace, CHAT.name): 0.0}
        self.observations.readings = Readings(at=self.at, pods=pods, finished=finished)
        for job in self.keys(JOBS.plural):
            meta = self.body(job)["metadata"]
            if "creationTimestamp" not in meta:
                meta["creationTimestamp"] = f"{self.at:%Y-%m-%dT%H:%M:%SZ}"
                self.cluster.touch(job)
        self._run_deployments()
        return await self.reconcile()

    async def settle(self, steps: int = 8) -> None:
        for _ in range(steps):
            await self.step()

    def keys(self, plural: str) -> list[ObjectKey]:
        return sorted(key for key in self.cluster.objects if key.plural == plural)

    @property
    def status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.body(CHAT)["status"]
        return status

    @property
    def gate_status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.body(GATE).get("status", {})
        return status

    def condition(self, name: str) -> Mapping[str, Any]:
        conditions = self.status["conditions"]
        condition: Mapping[str, Any] = next(each for each in conditions if each["type"] == name)
        return condition

    def revisions(self) -> dict[str, int]:
        return {
            key.name: self.body(key)["revision"] for key in self.keys(CONTROLLER_REVISIONS.plural)
        }

    def arguments(self, job: ObjectKey) -> dict[str, str]:
        """Return the options of the container of a Job."""
        arguments = self.body(job)["spec"]["template"]["spec"]["containers"][0]["args"]
        options = (each.removeprefix("--").split("=", 1) for each in arguments if "=" in each)
        return {name: value for name, value in options}

    def running_job(self, role: str | None = None) -> ObjectKey | None:
        """Return the gate's Job whose pod has not ended."""
        for key in self.keys(JOBS.plural):
            labels = self.body(key)["metadata"]["labels"]
            ended = ObjectKey(PODS.plural, key.namespace, f"{key.name}-x") in self.cluster.objects
            failed = "status" in self.body(key)
            if labels.get(gate_names.GATE_ROLE_LABEL) in (
                role,
                *([] if role else ["baseline", "candidate"]),
            ) and not (ended or failed):
                return key
        return None

    async def ask(self, role: str) -> ObjectKey:
        """Go on until a Job asks in this role; the stable version answers before."""
        for _ in range(16):
            if (job := self.running_job(role)) is not None:
                return job
            if (other := self.running_job()) is not None:
                self.report(other)
            await self.step()
        raise AssertionError((self.condition("Progressing"), self.keys(JOBS.plural)))

    def report(self, job: ObjectKey, text: str | None = None, **fields: Any) -> None:
        """End the pod of a Job with a report."""
        options = self.arguments(job)
        is_judged = options["role"] == "candidate"
        judged = {"verdict": "Passed", "strata": [["total", 400, 0.8, 0.8, 0, 1.5, 4, False]]}
        report = {
            "phase": "gate",
            "state": "judged" if is_judged else "answered",
            "version": options["version"],
            "baseline": options.get("baseline", ""),
            "suite": SUITE,
            "scorer": options["scorer"],
            "prompts": {"all": 400},
            "answers": [0, 0, 0, 100, 0.3, 0.02],
            **(judged if is_judged else {}),
            **fields,
        }
        message = json.dumps(report)[:4096] if text is None else text[:4096]
        terminated = {"exitCode": 0, "message": message}
        states = [{"name": "gate", "state": {"terminated": terminated}}]
        self._put_pod(job, {"phase": "Succeeded", "containerStatuses": states})

    def kill(self, job: ObjectKey) -> None:
        """End a Job without a word, as an eviction of its pod does."""
        condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
        self.body(job)["status"] = {"conditions": [condition]}
        self.cluster.touch(job)

    def _put_pod(self, job: ObjectKey, status: dict[str, Any]) -> None:
        owner = self.body(job)["metadata"]
        controller = {"kind": "Job", "name": job.name, "uid": owner["uid"], "controller": True}
        meta = {
            "name": f"{job.name}-x",
            "namespace": job.namespace,
            "labels": owner["labels"],
            "ownerReferences": [controller],
            "creationTimestamp": "2026-11-20T12:00:00Z",
        }
        self.cluster.put(PODS, {"metadata": meta, "spec": {"containers": []}, "status": status})

    def _run_deployments(self) -> None:
        """Start and stop replicas as Deployments say; pods of Jobs go with these."""
        for pod in self.keys(PODS.plural):
            owner = self.body(pod)["metadata"]["ownerReferences"][0]
            key = ObjectKey(JOBS.plural, pod.namespace, owner["name"])
            if owner["kind"] == "Job" and key not in self.cluster.objects:
                self.cluster.discard(pod)
        pods = defaultdict[ObjectKey, list[ObjectKey]](list)
        for pod in self.keys(PODS.plural):
            if self.body(pod)["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet":
                name = pod.name.rpartition(".")[0]
                pods[ObjectKey(DEPLOYMENTS.plural, pod.namespace, name)].append(pod)
        replicas = {key: 0 for key in pods} | {
            key: self.body(key)["spec"]["replicas"] for key in self.keys(DEPLOYMENTS.plural)
        }
        for key, count in replicas.items():
            for pod in sorted(pods[key], key=self._deletion_order)[
                : max(0, len(pods[key]) - count)
            ]:
                self.cluster.discard(pod)
                pods[key].remove(pod)
            if key not in self.cluster.objects:
                continue
            generation = self.body(key)["metadata"].get("generation", 0)
            counts = {"replicas": count, "updatedReplicas": count}
            status = {"observedGeneration": generation, **counts}
            if self.body(key).get("status") != status:
                self.body(key)["status"] = status
                self.cluster.touch(key)
            names = [f"{key.name}.{index}" for index in range(len(pods[key]) + count)]
            present = {pod.name for pod in pods[key]}
            # The lowest free names are those of new replicas.
            names.sort(key=lambda name: name not in present)
            for name in names[:count]:
                self._run_replica(key, name, int(name.rpartition(".")[2]))

    def _deletion_order(self, pod: ObjectKey) -> tuple[int, int]:
        annotations = self.body(pod)["metadata"].get("annotations") or {}
        cost = int(annotations.get("controller.kubernetes.io/pod-deletion-cost", 0))
        return cost, -int(pod.name.rpartition(".")[2])

    def _run_replica(self, deployment: ObjectKey, name: str, index: int) -> None:
        key = ObjectKey(PODS.plural, deployment.namespace, name)
        template = self.body(deployment)["spec"]["template"]
        body = self.cluster.objects.get(key)
        at = f"{self.at:%Y-%m-%dT%H:%M:%SZ}"
        if body is None:
            body = replica_of(deployment, name)
            body["metadata"]["labels"] |= template["metadata"]["labels"]
            arguments = template["spec"]["containers"][0]["args"]
            is_up = not self.hanging and not any(
                self.broken and each.startswith(self.broken) for each in arguments
            )
            body["spec"] = {**template["spec"]}
            if not self.unbound:
                body["spec"]["nodeName"] = "a100-0"
            conditions = [
                {
                    "type": "PodScheduled",
                    "status": str(not self.unbound),
                    "lastTransitionTime": at,
                    "message": "0/1 nodes are available",
                },
                {
                    "type": "ContainersReady",
                    "status": str(is_up),
                    "lastTransitionTime": at,
                },
            ]
            address = f"10.0.{crc32(deployment.name.encode()) % 250}.{index + 1}"
            running = [{"name": "engine", "ready": True, "state": {"running": {"startedAt": at}}}]
            body["status"] = {
                "phase": "Running",
                "podIP": address,
                "conditions": conditions,
                "containerStatuses": running,
            }
            self.cluster.put(PODS, body)
            return
        present = {each["type"]: each for each in body["status"]["conditions"]}
        serving = present.get("tessera.dev/serving", {}).get("status") == "True"
        serving = serving and present["ContainersReady"]["status"] == "True"
        ready = {"type": "Ready", "status": str(serving), "lastTransitionTime": at}
        if present.get("Ready", {}).get("status") != str(serving):
            body["status"]["conditions"] = [
                *(each for name, each in present.items() if name != "Ready"),
                ready,
            ]
            self.cluster.touch(key)
