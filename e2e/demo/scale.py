"""More requests than a replica carries; replicas rise, and fall again when they are few."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from demo.cluster import InstalledCluster, Json, StepError, until
from demo.load import load_with_key
from demo.serve import SCALING, SERVICE
from demo.signals import Signals, read_signals
from demo.tenants import create_key, gateway_address

OPERATOR = "tessera-operator"

_ROSE = {"DemandAboveCapacity", "BacklogAboveTarget", "ReplicasFull", "TooManyReplicas"}
_FELL = {"CapacityAboveDemand"}
_LOOK_SECONDS = 0.2
_SHOW_SECONDS = 4.0
# So many times as many clients as a replica runs requests: more than all replicas do.
_TIMES_FULL = 4
# The load stays so long with all replicas.
_HOLD_SECONDS = 8.0
_RISE_SECONDS, _FALL_SECONDS = 150, 200


@dataclass(slots=True)
class ScalingRecord:
    """Every number of replicas with its writer, every reason with its message, and the load."""

    replicas: list[tuple[int, str | None]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    signals: list[Signals] = field(default_factory=list)


async def run(cluster: InstalledCluster) -> str:
    """Replicas must rise and fall by the operator's own patches, with both reasons in status."""
    key = await create_key(cluster, SERVICE.namespace, "load")
    base = f"http://{await gateway_address(cluster)}:8443"
    async with _record_scaling(cluster) as record:
        max_num_seqs = (await cluster.service(SERVICE))["status"]["variant"]["maxNumSeqs"]
        clients = _TIMES_FULL * max_num_seqs
        cluster.say(f"{clients} clients send requests; a replica runs {max_num_seqs} at a time")
        cluster.notebook.mark("load comes")
        async with load_with_key(base, SERVICE.name, key, clients=clients, tokens=150) as load:
            await _replicas(cluster, SCALING["maxReplicas"], _RISE_SECONDS)
            await asyncio.sleep(_HOLD_SECONDS)
        cluster.notebook.mark("load goes")
        cluster.say(f"{load.finished} answers, {load.tokens} tokens; now one client stays")
        if load.failures:
            raise StepError(f"{len(load.failures)} requests failed, first: {load.failures[0]}")
        async with load_with_key(base, SERVICE.name, key, clients=1, tokens=10, pause=1.0) as small:
            await _replicas(cluster, SCALING["minReplicas"], _FALL_SECONDS)
        if small.failures:
            raise StepError(f"a request failed while replicas left: {small.failures[0]}")
    _check_record(record)
    counts = [count for count, _ in itertools.groupby(count for count, _ in record.replicas)]
    queue, activity, arrivals = (
        max(getattr(signals, name) for signals in record.signals)
        for name in ("queue", "activity", "arrivals")
    )
    return (
        f"replicas went {', '.join(map(str, counts))} by the operator alone; up to {queue} "
        f"requests waited, activity reached {activity:.2f} and arrivals {arrivals:.1f} a second; "
        f"{load.finished + small.finished} answers, none failed."
    )


async def _replicas(cluster: InstalledCluster, count: object, within: float) -> None:
    async def replicas() -> Json:
        status: Json = (await cluster.service(SERVICE)).get("status", {})
        return {key: status.get(key) for key in ("replicas", "readyReplicas", "scaling")}

    def reached(status: Json) -> bool:
        return bool(status["replicas"] == status["readyReplicas"] == count)

    await until(replicas, reached, f"{count} replicas", within)


def _check_record(record: ScalingRecord) -> None:
    counts = [count for count, _ in record.replicas]
    if not counts or max(counts) <= counts[0] or counts[-1] >= max(counts):
        raise StepError(f"replicas did not rise and fall: {counts}")
    other_writers = {manager for _, manager in record.replicas if manager != OPERATOR}
    if other_writers:
        raise StepError(
            f"replicas were not written by the operator's patches alone: {other_writers}"
        )
    if not any(signals.queue and signals.arrivals for signals in record.signals):
        raise StepError(f"no queue or no arrivals were measured: {record.signals}")
    if not max(signals.activity for signals in record.signals):
        raise StepError(f"no DCGM activity was measured: {record.signals}")
    if not _ROSE & set(record.reasons) or not _FELL & set(record.reasons):
        raise StepError(f"a reason is missing in status: {sorted(record.reasons)}")


@contextlib.asynccontextmanager
async def _record_scaling(cluster: InstalledCluster) -> AsyncIterator[ScalingRecord]:
    """Poll the Deployment, watch the status, and print every new reason and the load."""
    record = ScalingRecord()

    followers = (_follow_replicas, _follow_reasons, _follow_signals)
    tasks = [asyncio.create_task(follow(cluster, record)) for follow in followers]
    try:
        yield record
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _follow_replicas(cluster: InstalledCluster, record: ScalingRecord) -> None:
    variant = (await cluster.service(SERVICE))["status"]["variant"]["name"]
    path = f"/apis/apps/v1/namespaces/{SERVICE.namespace}/deployments/{SERVICE.name}-{variant}"
    while True:
        _note_replicas(await cluster.api.get(path), record)
        await asyncio.sleep(_LOOK_SECONDS)


async def _follow_reasons(cluster: InstalledCluster, record: ScalingRecord) -> None:
    """Note every reason; it may be followed by the next one within a tenth of a second."""
    path = f"/apis/tessera.dev/v1alpha1/namespaces/{SERVICE.namespace}/inferenceservices"
    while True:
        version = (await cluster.service(SERVICE))["metadata"]["resourceVersion"]
        async for kind, body in cluster.api.watch(path, version):
            if kind != "BOOKMARK" and body["metadata"]["name"] == SERVICE.name:
                _note_reason(cluster, body, record)


async def _follow_signals(cluster: InstalledCluster, record: ScalingRecord) -> None:
    url = cluster.world.prometheus_url
    while True:
        signals = await read_signals(url, cluster.notebook.begun, str(SERVICE))
        if not record.signals or signals.count != record.signals[-1].count:
            cluster.say(str(signals))
        record.signals.append(signals)
        await asyncio.sleep(_SHOW_SECONDS)


def _note_reason(cluster: InstalledCluster, service: Json, record: ScalingRecord) -> None:
    status = service.get("status", {})
    scaling = status.get("scaling", {})
    reason = scaling.get("reason")
    if reason and reason not in record.reasons:
        record.reasons[reason] = scaling["message"]
        attained = (status.get("slo") or {}).get("attained")
        slo = f", SLO attained {attained}" if attained else ""
        cluster.say(f"{scaling['desiredReplicas']} desired{slo}: {reason}: {scaling['message']}")


def _note_replicas(deployment: Json, record: ScalingRecord) -> None:
    count = deployment["spec"]["replicas"]
    if not record.replicas or record.replicas[-1][0] != count:
        record.replicas.append((count, _writer_of_replicas(deployment)))


def _writer_of_replicas(deployment: Json) -> str | None:
    """Who owns `spec.replicas`, as the API server keeps it in managedFields."""
    for entry in deployment["metadata"].get("managedFields", ()):
        spec = entry.get("fieldsV1", {}).get("f:spec", {})
        if "f:replicas" in spec and entry.get("operation") == "Apply":
            return str(entry["manager"])
    return None
