"""CPU time of a reconcile in which nothing changed: `make bench-turn`.

An in-memory cluster holds the fleet, so that the operator's own work is measured: observing,
planning, comparing. With `--foreign`, other people's pods hold devices of all nodes of the cluster,
the pool's and others, and what one takes is measured. With `--variants`, each service has a replica
in each of so many pools, of which none has room for more. With `--moving 2000`, so many services
in three pools roll out (`moving_fleet.py`), and what `plan()` takes is measured. With `--gated`,
services with gates, budgets and routes are idle. The last line is `BENCH {json}`.
"""

import asyncio
import gc
import math
import resource
import statistics
import time
import tracemalloc
from dataclasses import replace
from datetime import timedelta
from typing import Any

from pydantic_core import from_json, to_json
from typing_extensions import override

from figures import benchmark
from moving_fleet import MovingFleet
from tessera.adapters.kube.object_parsing import parse_object
from tessera.api.model_files import PoolingTask
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    INFERENCE_SERVICES,
    MODEL_ROUTES,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.domain.names import deployment_name
from tessera.domain.observed.snapshot import EngineReading, Pod, PodReading, Readings
from tessera.ports import ClusterObject, ObjectList
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.reconcile.store import Store
from tessera.resources.api_resources import DEPLOYMENTS, KINDS, NODES, PODS, SERVICES
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW, a_speed_reading
from tests.memory_cluster import MemoryCluster
from tests.memory_operator import (
    MemoryOperator,
    SilentEngines,
    reconcile_and_write,
    replica_of,
)

REPLICAS = 2
RECONCILES = 30
PERIOD = timedelta(seconds=5)
# As often as the operator asks for speeds.
_SPEEDS = timedelta(seconds=30)
_SPEED_RECONCILES = 20
NAMESPACES = 40
# What part of the services of a rollout changes between two cycles: a twentieth.
MOVING_SHARE = 20
GATED_SERVICES, BUDGETS, ROUTES, GATES = 200, 500, 100, 50
POOLS = ("a100", "b100", "c100", "d100", "e100", "f100", "g100", "h100")


class _Engines(SilentEngines):
    """Engines that answer every completion."""

    @override
    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        del base, model, task
        return None


def _stock(operator: MemoryOperator, services: int, variants: int) -> None:
    cluster = operator.cluster
    for index, name in enumerate(POOLS[:variants]):
        pool = {
            "nodeSelector": {"pool": name},
            "tier": "OnDemand" if index else "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": str(2 + index)}],
        }
        cluster.put(ACCELERATOR_POOLS, {"metadata": {"name": name}, "spec": pool})
    for index in range(services):
        for pool_name in POOLS[:variants]:
            cluster.put(NODES, _node(pool_name, index, full=variants > 1))
        name, namespace = f"chat-{index:04d}", f"team-{index % NAMESPACES}"
        if variants == 1:
            operator.serve(name, namespace)
            for replica in range(REPLICAS):
                cluster.put(PODS, _pod(namespace, name, "a100", replica))
            continue
        operator.serve(name, namespace, replicas=variants)
        for pool_name in POOLS[:variants]:
            body = _pod(namespace, name, pool_name, 0)
            body["spec"]["nodeName"] = f"{pool_name}-{index}"
            cluster.put(PODS, body)


def _node(pool: str, index: int, *, full: bool) -> dict[str, Any]:
    """Return a node with room for one replica, or for more than any service has."""
    labels = {
        "pool": pool,
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.count": "1" if full else "2",
    }
    slices = {"nvidia.com/mig-1g.10gb": "1"}
    status = {
        "allocatable": slices if full else {"nvidia.com/mig-1g.10gb": "7", "nvidia.com/gpu": "1"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return {"metadata": {"name": f"{pool}-{index}", "labels": labels}, "status": status}


def _settle(cluster: MemoryCluster) -> None:
    """What the controllers of a cluster add to Services and Deployments."""
    for key, body in list(cluster.objects.items()):
        named = {"metadata": {"namespace": key.namespace, "name": key.name}}
        if key.plural == SERVICES.plural:
            cluster.put(SERVICES, named | {"spec": {"clusterIP": "127.0.0.1"}})
        if key.plural == DEPLOYMENTS.plural:
            count, generation = body["spec"]["replicas"], body["metadata"]["generation"]
            counts = {"replicas": count, "updatedReplicas": count, "observedGeneration": generation}
            cluster.put(DEPLOYMENTS, named | {"status": counts})


def _pod(namespace: str, service: str, pool: str, replica: int) -> dict[str, Any]:
    name = deployment_name(service, f"{pool}-1g-10gb")
    deployment = ObjectKey("deployments", namespace, name)
    body = replica_of(deployment, f"{deployment.name}-{replica}", service)
    since = "2026-11-20T11:00:00Z"
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": since}
        for kind in ("Ready", "ContainersReady", "PodScheduled", "tessera.dev/serving")
    ]
    status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": conditions}
    body["metadata"]["creationTimestamp"] = since
    return {**body, "status": status}


def _foreign_pods(count: int) -> tuple[ClusterObject, ...]:
    """Return pods of others as a list of the API server brings them: each from its own JSON."""
    limits = {"nvidia.com/gpu": "1"}
    since = "2026-11-20T11:00:00Z"
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": since}
    return tuple(
        parse_object(
            PODS,
            from_json(
                to_json(
                    {
                        "metadata": {
                            "name": f"training-{index:05d}-worker",
                            "namespace": f"research-{index % NAMESPACES}",
                            "uid": f"0f8fad5b-d9cb-469f-a165-{index:012d}",
                            "resourceVersion": str(10**9 + index),
                            "creationTimestamp": since,
                            "labels": {"app": "training", "index": str(index)},
                        },
                        "spec": {
                            "nodeName": f"node-{index % 2500}",
                            "containers": [{"name": "main", "resources": {"limits": limits}}],
                        },
                        "status": {"phase": "Running", "conditions": [scheduled]},
                    }
                )
            ),
        )
        for index in range(count)
    )


def _foreign_pod_bytes(count: int) -> int:
    """Return what the store keeps of one pod of others."""
    store = Store(KINDS)
    tracemalloc.start()
    store.replace(PODS, ObjectList(_foreign_pods(count), 1))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size // count


async def _begin(operator: MemoryOperator, foreign: int = 0) -> list[Pod]:
    """Run cycles until nothing changes; return the replicas."""
    observations = operator.observations
    await operator.reflector.list_all()
    pods = [
        entry.plan_input
        for entry in operator.store.all(PODS).values()
        if isinstance(entry.plan_input, Pod)
    ]
    reading = PodReading(waiting=0.0, running=1.0, activity=0.5)
    engine = EngineReading(steps=9.0, scraped_at=NOW, awake=True)
    observations.readings = Readings(
        at=NOW,
        pods={pod.ref: reading for pod in pods},
        engines={pod.ref: engine for pod in pods},
    )
    await _reconcile(operator)
    _settle(operator.cluster)
    for _ in range(4):
        await operator.reflector.list_all()
        operator.at += PERIOD
        await _reconcile(operator)
        await asyncio.sleep(0.1)  # the answers to the first completions
    for observed in _foreign_pods(foreign):
        operator.store.put(PODS, observed)
    await _reconcile(operator)
    return pods


async def _unchanged(operator: MemoryOperator) -> tuple[list[float], int]:
    """Return the milliseconds of CPU that cycles took in which nothing changed, and the writes."""
    observations = operator.observations
    spent, writes = [], 0
    for _ in range(RECONCILES):
        operator.at += PERIOD
        observations.readings = replace(observations.readings or Readings(at=NOW), at=operator.at)
        begun = time.process_time()
        writes += (await _reconcile(operator)).writes
        spent.append((time.process_time() - begun) * 1e3)
    return spent, writes


async def _measure(services: int, foreign: int, variants: int) -> dict[str, float]:
    operator = MemoryOperator(engines=_Engines())
    _stock(operator, services, variants)
    pods = await _begin(operator, foreign)
    spent, writes = await _unchanged(operator)
    one_change = await _one_change(operator, pods[0])
    status_bytes = max(
        len(to_json(body["status"]))
        for key, body in operator.cluster.objects.items()
        if key.plural == INFERENCE_SERVICES.plural
    )
    measured, speed_writes = await _with_speeds(operator)
    await operator.prober.stop()
    return {
        "services": services,
        "variants": variants,
        "pods": len(pods),
        "foreign_pods": foreign,
        "turn_cpu_ms": round(statistics.median(spent), 2),
        "turn_cpu_ms_mean": round(statistics.mean(spent), 2),
        "turn_cpu_ms_max": round(max(spent), 2),
        "writes": writes,
        "change_cpu_ms": one_change,
        "status_bytes": status_bytes,
        "speeds_turn_cpu_ms": measured,
        "speeds_writes_per_service": round(speed_writes / services, 2),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


async def _measure_gated() -> dict[str, float]:
    """Measure cycles of services with gates, budgets and routes in which nothing changes."""
    operator = MemoryOperator(engines=_Engines())
    _stock_gated(operator)
    await _begin(operator)
    gc.collect()
    gc.freeze()  # as the operator does with what outlives a collection
    spent, writes = await _unchanged(operator)
    phases = {
        service_plan.gated.state.phase
        for service_plan in (await _reconcile(operator)).plan.service_plans.values()
        if service_plan.gated is not None
    }
    if phases != {"Stable"}:
        raise RuntimeError(f"services are {phases}, so their gates are not idle")
    await operator.prober.stop()
    return {"turn_gated_idle_ms": round(statistics.median(spent), 2), "gated_writes": writes}


def _stock_gated(operator: MemoryOperator) -> None:
    cluster = operator.cluster
    _stock(operator, 0, 1)
    for index in range(GATED_SERVICES):
        cluster.put(NODES, _node("a100", index, full=False))
        name, namespace = f"chat-{index:04d}", f"team-{index % GATES}"
        operator.serve(name, namespace, rollout={"strategy": "Gated", "gateRef": "answers"})
        for replica in range(REPLICAS):
            cluster.put(PODS, _pod(namespace, name, "a100", replica))
    for index in range(GATES):
        meta = {"name": "answers", "namespace": f"team-{index}"}
        suite = {"suite": {"configMap": {"name": "suite"}}}
        cluster.put(QUALITY_GATES, {"metadata": meta, "spec": suite})
    for index in range(ROUTES):
        meta = {"name": f"route-{index}", "namespace": f"team-{index % GATES}"}
        targets = [{"service": f"chat-{index:04d}"}, {"service": f"chat-{index + ROUTES:04d}"}]
        cluster.put(MODEL_ROUTES, {"metadata": meta, "spec": {"targets": targets}})
    for index in range(BUDGETS):
        spec = {
            "owner": "anna@example.org",
            "tenant": {"namespaces": [f"team-{index}"]},
            "limits": [{"window": "Day", "amount": "1000"}],
        }
        cluster.put(TENANT_BUDGETS, {"metadata": {"name": f"team-{index}"}, "spec": spec})


async def _reconcile(operator: MemoryOperator) -> ReconcileOutcome:
    return await reconcile_and_write(operator.fleet, operator.applier)


async def _one_change(operator: MemoryOperator, pod: Pod) -> float:
    """Return the CPU time that a reconcile needs more when one replica turns unready or ready."""
    key = ObjectKey(PODS.plural, pod.ref.namespace, pod.ref.name)
    entry = operator.store.all(PODS)[key]
    spent: dict[bool, list[float]] = {True: [], False: []}
    for index in range(RECONCILES):
        changes = bool(index % 2)
        if changes:
            since = None if index % 4 == 1 else pod.ready_since
            changed = replace(entry, plan_input=replace(pod, ready_since=since))
            operator.store.put(PODS, changed)
        operator.at += PERIOD
        begun = time.process_time()
        await _reconcile(operator)
        spent[changes].append((time.process_time() - begun) * 1e3)
    return round(statistics.median(spent[True]) - statistics.median(spent[False]), 2)


async def _with_speeds(operator: MemoryOperator) -> tuple[float, int]:
    """Ten minutes with measured speeds that move in every reading: the CPU time of a reconcile
    that finds a new one, and the writes after the first, which writes all services."""
    spent, writes = [], 0
    refs = {pod.service for pod in (await _reconcile(operator)).snapshot.pods}
    observations = operator.observations
    known = observations.readings or Readings(at=operator.at)
    for index in range(_SPEED_RECONCILES):
        operator.at += _SPEEDS
        share = 1 + 0.08 * math.sin(index)
        reading = a_speed_reading(
            itl_seconds=0.0145 * share, tokens_per_second=400 * share, running=4 * share
        )
        observations.readings = replace(
            known,
            at=operator.at,
            speeds={ref: (reading,) for ref in refs},
            speeds_at=operator.at,
        )
        begun = time.process_time()
        wrote = (await _reconcile(operator)).writes
        if index:
            spent.append((time.process_time() - begun) * 1e3)
            writes += wrote
    return round(statistics.median(spent), 2), writes


def _measure_moving(services: int) -> dict[str, float]:
    """Measure the cycles of a rollout: all services edited, some of them changed, all changed."""
    fleet = MovingFleet(services, POOLS[:3])
    fleet.settle()
    fleet.edit(1)
    edited = fleet.run_cycle()
    moving, share = [], max(1, services // MOVING_SHARE)
    for _ in range(MOVING_SHARE):
        fleet.follow(share)
        moving.append(fleet.run_cycle())
    fleet.follow(services)
    changed = fleet.run_cycle()
    return {
        "services": services,
        "pools": 3,
        "rolling_out": fleet.moving,
        f"turn_{services}_moving_ms": round(statistics.median(moving), 1),
        f"turn_{services}_moving_ms_mean": round(statistics.mean(moving), 1),
        f"turn_{services}_all_ms": round(max(edited, changed), 1),
    }


async def measure(
    services: int = 50, foreign: int = 0, variants: int = 1, moving: int = 0, gated: bool = False
) -> dict[str, float]:
    """Measure cycles, and what a foreign pod takes where there are some."""
    if moving:
        return _measure_moving(moving)
    if gated:
        return await _measure_gated()
    figures = await _measure(services, foreign, variants)
    if foreign:
        figures["foreign_pod_bytes"] = _foreign_pod_bytes(foreign)
    return figures


if __name__ == "__main__":
    benchmark(measure, 16, short={"services": 2}, variants={"choices": range(1, len(POOLS) + 1)})
