"""The hostile-tenant suite: one fleet with a hostile tenant, and its twin without him.

A scene builds both fleets, lets the hostile one act, and runs the same cycles over both under a
fake clock. Afterwards every object, every spend and every line of the bill that is not his must be
equal, object by object and nano-unit by nano-unit:

    async def test_a_scene() -> None:
        twins = Twins(lambda fleet: ...)          # the same fleet twice: pools, nodes, services
        twins.hostile.serve("x", HOSTILE, scaling={"minReplicas": 1000})
        await twins.run(cycles=20)                # 5 s each; `act=` is called before each cycle
        twins.assert_equal()                      # everything outside the namespace `evil`

`Fleet` is an operator over an in-memory cluster together with what a control plane does:
Deployments make ReplicaSets and pods with owner references, pods are bound to nodes that have
their devices, become ready after `READY_AFTER`, and go when they are removed.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, TENANT_BUDGETS
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.domain.observed.snapshot import PodReading, Readings, Ref
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.reconcile.observe import SolvedLayouts
from tessera.resources.api_resources import DEPLOYMENTS, KINDS, NODES, PODS
from tessera.resources.manifest import ObjectKey
from tests.hostile.score import SCORE
from tests.memory_operator import MemoryOperator

HOSTILE = "evil"
PERIOD = timedelta(seconds=5)
READY_AFTER = timedelta(seconds=30)
A100 = "NVIDIA-A100-SXM4-80GB"

Body = dict[str, Any]


class Fleet(MemoryOperator):
    """An operator, and the controllers, scheduler and kubelets of its cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.outcome: ReconcileOutcome | None = None
        self.running: dict[Ref, float] = {}
        """Requests in flight by service, dealt evenly to its ready replicas; none: no reading."""
        self.waiting: dict[Ref, float] = {}
        self.kubelet_ahead = timedelta()
        """How far the clocks of the nodes are ahead of that of the control plane."""
        self.plans_layouts = True
        """Whether layout problems are solved, each within its own cycle."""

    def add_pool(self, name: str, per_gpu_hour: str = "2", **spec: Any) -> ObjectKey:
        prices = [{"from": "2026-01-01", "perGPUHour": per_gpu_hour}]
        body = {"nodeSelector": {"pool": name}, "tier": "Reserved", "prices": prices, **spec}
        return self.cluster.put(
            ACCELERATOR_POOLS, {"metadata": self._meta(name, None), "spec": body}
        )

    def add_node(
        self,
        name: str,
        pool: str,
        slices: Mapping[str, int] | None = None,
        *,
        whole: int = 0,
        product: str = A100,
        labels: Mapping[str, str] | None = None,
    ) -> ObjectKey:
        """Add a node of a pool, one GPU of it in these slices."""
        slices = slices or {}
        allocatable = {f"nvidia.com/mig-{profile}": str(count) for profile, count in slices.items()}
        if whole:
            allocatable["nvidia.com/gpu"] = str(whole)
        meta = self._meta(name, None)
        meta["labels"] = {
            "pool": pool,
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.count": str(whole + (1 if slices else 0)),
            **(labels or {}),
        }
        status = {
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        return self.cluster.put(NODES, {"metadata": meta, "status": status})

    def add_budget(self, name: str, amount: str, window: str = "Day", **spec: Any) -> ObjectKey:
        """Add the budget of the namespace of the same name."""
        body = {
            "owner": f"{name}@example.org",
            "tenant": {"namespaces": [name]},
            "limits": [{"window": window, "amount": amount}],
            **spec,
        }
        return self.cluster.put(TENANT_BUDGETS, {"metadata": self._meta(name, None), "spec": body})

    def run_pod(
        self,
        name: str,
        namespace: str = HOSTILE,
        *,
        labels: Mapping[str, str] | None = None,
        devices: Mapping[str, int] | None = None,
        node_selector: Mapping[str, str] | None = None,
        owner: Body | None = None,
    ) -> ObjectKey:
        """Create a pod as anybody may; the scheduler binds it if a node has its devices."""
        limits = {resource: str(count) for resource, count in (devices or {}).items()}
        meta = self._meta(name, namespace) | {"labels": dict(labels or {})}
        if owner is not None:
            meta["ownerReferences"] = [owner]
        spec = {
            "nodeSelector": dict(node_selector or {}),
            "containers": [{"name": "main", "resources": {"limits": limits}}],
        }
        return self.cluster.put(PODS, {"metadata": meta, "spec": spec})

    async def cycle(self) -> None:
        """Run one cycle, then the controllers, then the clock."""
        self.observations.readings = self._readings()
        self.outcome = await self.reconcile()
        problem = self.outcome.plan.repartitions.layout_problem
        if self.plans_layouts and problem is not None and problem.terms:
            self._adopt_solution(problem)
        self._run_controllers()
        self.at += PERIOD

    def _adopt_solution(self, problem: LayoutProblem) -> None:
        solution = self.observations.layouts.solution
        if solution is None or solution.problem != problem:
            self.observations.layouts = SolvedLayouts(solve(problem))

    def pods_of(self, namespace: str, service: str | None = None) -> list[ObjectKey]:
        return [
            key
            for key, body in self._bodies("pods")
            if key.namespace == namespace
            and service in (None, body["metadata"].get("labels", {}).get("tessera.dev/service"))
        ]

    def replicas_of(self, namespace: str) -> int:
        """Return the replicas of all Deployments of a namespace."""
        return sum(
            body["spec"].get("replicas", 0)
            for key, body in self._bodies("deployments")
            if key.namespace == namespace
        )

    def spent(self, budget: str) -> int:
        """Return the nano-units that a budget has counted in its first window."""
        meter = self.memory.meters[budget]
        return next(iter(meter.spend_by_window.values())).nanos

    def _meta(self, name: str, namespace: str | None) -> Body:
        meta: Body = {"name": name, "creationTimestamp": _wire(self.at)}
        return meta if namespace is None else meta | {"namespace": namespace}

    def _bodies(self, plural: str) -> list[tuple[ObjectKey, Body]]:
        objects = self.cluster.objects
        return [(key, objects[key]) for key in sorted(objects) if key.plural == plural]

    def _run_controllers(self) -> None:
        for key, deployment in self._bodies("deployments"):
            self._reconcile_deployment(key, deployment)
        for key, pod in self._bodies("pods"):
            owner = next(iter(pod["metadata"].get("ownerReferences", ())), None)
            if owner and owner["kind"] == "ReplicaSet" and not self._deployment_of(owner, key):
                self._delete(key)
        free = self._free_devices()
        for key, pod in self._bodies("pods"):
            if not pod["spec"].get("nodeName"):
                self._schedule(key, pod, free)
            else:
                self._run(key, pod)

    def _deployment_of(self, owner: Body, pod: ObjectKey) -> bool:
        name = owner["name"].rpartition("-")[0]
        return ObjectKey("deployments", pod.namespace, name) in self.cluster.objects

    def _reconcile_deployment(self, key: ObjectKey, deployment: Body) -> None:
        spec, meta = deployment["spec"], deployment["metadata"]
        template_hash = "one"
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": f"{key.name}-{template_hash}",
            "uid": f"uid-rs-{meta['uid']}",
            "controller": True,
        }
        self._put_replica_set(key, owner, meta)
        pods = {
            pod_key.name: body
            for pod_key, body in self._bodies("pods")
            if pod_key.namespace == key.namespace
            and any(
                reference["uid"] == owner["uid"]
                for reference in body["metadata"].get("ownerReferences", ())
            )
        }
        free_names = (
            name
            for name in (f"{key.name}-{template_hash}-{index}" for index in itertools.count())
            if name in pods or ObjectKey("pods", key.namespace, name) not in self.cluster.objects
        )
        names = set(itertools.islice(free_names, spec.get("replicas", 1)))
        surplus = len(pods) - len(names)
        by_cost = sorted(pods, key=lambda name: (_deletion_cost(pods[name]), name not in names))
        for name in by_cost[: max(surplus, 0)]:
            self._delete(ObjectKey("pods", key.namespace, name))
            del pods[name]
        for name in sorted(names - pods.keys())[: max(-surplus, 0)]:
            labels = spec["template"]["metadata"]["labels"] | {"pod-template-hash": template_hash}
            pod_meta = self._meta(name, key.namespace) | {
                "labels": labels,
                "ownerReferences": [owner],
            }
            self.cluster.put(
                PODS,
                {"metadata": pod_meta, "spec": spec["template"]["spec"]},
                "kube-controller-manager",
            )
        ready = sum(_is_ready(pod) for pod in pods.values())
        wanted = spec.get("replicas", 1)
        self.cluster.put(
            DEPLOYMENTS,
            {
                "metadata": {"name": key.name, "namespace": key.namespace},
                "status": {
                    "observedGeneration": meta["generation"],
                    "replicas": wanted,
                    "updatedReplicas": wanted,
                    "readyReplicas": ready,
                    "availableReplicas": ready,
                },
            },
            "kube-controller-manager",
        )

    def _put_replica_set(self, key: ObjectKey, owner: Body, deployment: Body) -> None:
        kind = next((kind for kind in KINDS if kind.plural == "replicasets"), None)
        if kind is None:
            return
        meta = self._meta(owner["name"], key.namespace) | {
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": key.name,
                    "uid": deployment["uid"],
                    "controller": True,
                }
            ]
        }
        replica_set = self.cluster.put(kind, {"metadata": meta}, "kube-controller-manager")
        self.cluster.objects[replica_set]["metadata"]["uid"] = owner["uid"]

    def _delete(self, key: ObjectKey) -> None:
        self.cluster.discard(key)

    def _free_devices(self) -> dict[str, Counter[str]]:
        free = {
            key.name: Counter(
                {name: int(count) for name, count in body["status"]["allocatable"].items()}
            )
            for key, body in self._bodies("nodes")
        }
        for _, pod in self._bodies("pods"):
            node = pod["spec"].get("nodeName")
            if node in free:
                free[node].subtract(_devices(pod))
        return free

    def _schedule(self, key: ObjectKey, pod: Body, free: dict[str, Counter[str]]) -> None:
        devices, selector = _devices(pod), pod["spec"].get("nodeSelector") or {}
        for node_key, node in self._bodies("nodes"):
            node_labels = node["metadata"].get("labels", {})
            tainted = any(
                taint["key"].startswith("tessera.dev/")
                for taint in node.get("spec", {}).get("taints", ())
            )
            fits = all(free[node_key.name][name] >= count for name, count in devices.items())
            if fits and not tainted and selector.items() <= node_labels.items():
                free[node_key.name].subtract(devices)
                self._update_pod(key, {"nodeName": node_key.name}, [("PodScheduled", "True")])
                return
        self._update_pod(key, {}, [("PodScheduled", "False")])

    def _run(self, key: ObjectKey, pod: Body) -> None:
        bound = _condition(pod, "PodScheduled")
        if _is_ready(pod) or not bound or self.at < _parse(bound) + READY_AFTER:
            return
        ready = [("Ready", "True"), ("ContainersReady", "True")]
        self._update_pod(key, {}, ready, self.at + self.kubelet_ahead)

    def _update_pod(
        self,
        key: ObjectKey,
        spec: Body,
        conditions: list[tuple[str, str]],
        at: datetime | None = None,
    ) -> None:
        pod = self.cluster.objects[key]
        pod["spec"].update(spec)
        status = pod.setdefault("status", {})
        status.setdefault("podIP", "127.10.0.5")
        others = [
            condition
            for condition in status.get("conditions", ())
            if condition["type"] not in dict(conditions)
        ]
        status["conditions"] = others + [
            {"type": kind, "status": value, "lastTransitionTime": _wire(at or self.at)}
            for kind, value in conditions
        ]
        self.cluster.touch(key)

    def _readings(self) -> Readings | None:
        if not self.running and not self.waiting:
            return None
        pods: dict[Ref, PodReading] = {}
        for service in self.running.keys() | self.waiting.keys():
            ready = [
                key
                for key in self.pods_of(service.namespace, service.name)
                if _is_ready(self.cluster.objects[key])
            ]
            for key in ready:
                pods[Ref(key.namespace, key.name)] = PodReading(
                    waiting=self.waiting.get(service, 0.0) / len(ready),
                    running=self.running.get(service, 0.0) / len(ready),
                )
        return Readings(at=self.at, pods=pods)


class Twins:
    """The same fleet with and without the hostile tenant."""

    def __init__(self, build: Callable[[Fleet], None]) -> None:
        self.hostile, self.peaceful = Fleet(), Fleet()
        for fleet in (self.hostile, self.peaceful):
            build(fleet)

    @property
    def both(self) -> tuple[Fleet, Fleet]:
        return self.hostile, self.peaceful

    async def run(self, cycles: int, act: Callable[[Fleet, int], None] | None = None) -> None:
        """Run the cycles over both; `act` is called for the hostile fleet before each."""
        for index in range(cycles):
            if act is not None:
                act(self.hostile, index)
            for fleet in self.both:
                await fleet.cycle()

    def differences(self, *hostile_namespaces: str) -> list[str]:
        """Return what differs outside the hostile namespaces, one line each."""
        excluded = set(hostile_namespaces or (HOSTILE,))
        hostile, peaceful = (dict(_comparable(fleet, excluded)) for fleet in self.both)
        return [
            f"{name}: {_first_difference(peaceful.get(name), hostile.get(name))}"
            for name in sorted(hostile.keys() | peaceful.keys())
            if hostile.get(name) != peaceful.get(name)
        ]

    def assert_equal(self, *hostile_namespaces: str) -> None:
        """Assert that nothing outside the hostile namespaces differs, and count the scene."""
        differences = self.differences(*hostile_namespaces)
        SCORE.add(len(differences))
        assert not differences, "\n".join(differences)


def _comparable(fleet: Fleet, hostile: set[str]) -> Iterator[tuple[str, object]]:
    """Yield everything that must not differ, by name; without identities and versions."""
    for key, body in sorted(fleet.cluster.objects.items()):
        path = f"{key.namespace}/{key.name}" if key.namespace else key.name
        if hostile & {key.namespace, path}:
            continue
        data = {name: text for name, text in body.get("data", {}).items() if name not in hostile}
        shown = body | {"data": data} if data else body
        yield f"{key.plural} {key.namespace}/{key.name}", _without_identity(shown)
    memory = fleet.memory
    for name, meter in memory.meters.items():
        if name not in hostile:
            windows = {window: spend.nanos for window, spend in meter.spend_by_window.items()}
            yield f"spend of {name} in nano-units", windows
    for line, amount in fleet.bill.lines.items():
        if line.namespace and line.namespace not in hostile:
            yield f"bill {line}", amount


_VOLATILE = ("uid", "resourceVersion", "managedFields", "generation", "observedGeneration")


def _without_identity(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            name: _without_identity(item) for name, item in value.items() if name not in _VOLATILE
        }
    return [_without_identity(item) for item in value] if isinstance(value, list) else value


def _first_difference(expected: object, actual: object, path: str = "") -> str:
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name in sorted(expected.keys() | actual.keys()):
            if expected.get(name) != actual.get(name):
                return _first_difference(expected.get(name), actual.get(name), f"{path}.{name}")
    return f"{path} is {str(actual)[:200]}, without him {str(expected)[:200]}"


def _wire(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _parse(condition: Body) -> datetime:
    return datetime.fromisoformat(condition["lastTransitionTime"])


def _condition(pod: Body, kind: str) -> Body | None:
    conditions = pod.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == kind), None)


def _is_ready(pod: Body) -> bool:
    condition = _condition(pod, "Ready")
    return condition is not None and condition["status"] == "True"


def _deletion_cost(pod: Body) -> int:
    annotations = pod["metadata"].get("annotations", {})
    return int(annotations.get("controller.kubernetes.io/pod-deletion-cost", 0))


def _devices(pod: Body) -> Counter[str]:
    devices: Counter[str] = Counter()
    for container in pod["spec"].get("containers", ()):
        limits = (container.get("resources") or {}).get("limits") or {}
        devices.update(
            {name: int(count) for name, count in limits.items() if name.startswith("nvidia.com/")}
        )
    return devices
