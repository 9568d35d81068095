"""Step 2: more requests than a replica carries; replicas rise, and fall again when they are few."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.load import steady_load

SERVICE = Ref("team-a", "chat")
OPERATOR = "tessera-operator"
# A small window, so that minutes become seconds.
SCALING = {"minReplicas": 1, "maxReplicas": 3, "scaleDown": {"stabilizationWindow": "8s"}}
# The default again, under which a load of seconds removes nothing.
DEFAULT_SCALING = {"scaleDown": None}

_ROSE = {"DemandAboveCapacity", "BacklogAboveTarget", "ReplicasFull"}
_FELL = {"CapacityAboveDemand"}
_LOOK_SECONDS = 0.2
# So many times as many clients as a replica runs requests.
_TIMES_FULL = 12
# Without the gateway arrivals are estimated over a minute.
_RISE_SECONDS, _FALL_SECONDS = 150, 200


@dataclass(slots=True)
class ScalingRecord:
    """Every number of replicas with its writer, and every reason with its message."""

    replicas: list[tuple[int, str | None]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


async def run(cluster: InstalledCluster) -> None:
    """Replicas must rise and fall by the operator's own patches, with both reasons in status."""
    await cluster.patch(SERVICE, {"scaling": SCALING})
    base = await cluster.address(SERVICE)
    async with _record_scaling(cluster) as record:
        max_num_seqs = (await cluster.service(SERVICE))["status"]["variant"]["maxNumSeqs"]
        clients = _TIMES_FULL * max_num_seqs
        cluster.say(f"{clients} clients send requests; a replica runs {max_num_seqs} at a time")
        async with steady_load(base, SERVICE.name, clients=clients, tokens=150) as load:
            await _replicas(cluster, SCALING["maxReplicas"], _RISE_SECONDS)
        cluster.say(f"{load.finished} answers, {load.tokens} tokens; now one client stays")
        if load.failures:
            raise StepError(f"{len(load.failures)} requests failed, first: {load.failures[0]}")
        async with steady_load(base, SERVICE.name, clients=1, tokens=10, pause=1.0) as small:
            await _replicas(cluster, SCALING["minReplicas"], _FALL_SECONDS)
        if small.failures:
            raise StepError(f"a request failed while replicas left: {small.failures[0]}")
    _check_record(record)
    await cluster.patch(SERVICE, {"scaling": DEFAULT_SCALING})


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
    if not _ROSE & set(record.reasons) or not _FELL & set(record.reasons):
        raise StepError(f"a reason is missing in status: {sorted(record.reasons)}")


@contextlib.asynccontextmanager
async def _record_scaling(cluster: InstalledCluster) -> AsyncIterator[ScalingRecord]:
    """Poll the Deployment, watch the status, and print every new reason."""
    record = ScalingRecord()

    async def look() -> None:
        variant = (await cluster.service(SERVICE))["status"]["variant"]["name"]
        path = f"/apis/apps/v1/namespaces/{SERVICE.namespace}/deployments/{SERVICE.name}-{variant}"
        while True:
            _note_replicas(await cluster.api.get(path), record)
            await asyncio.sleep(_LOOK_SECONDS)

    async def watch() -> None:
        # The reason of a change may be followed by the next one within a tenth of a second.
        path = f"/apis/tessera.dev/v1alpha1/namespaces/{SERVICE.namespace}/inferenceservices"
        while True:
            version = (await cluster.service(SERVICE))["metadata"]["resourceVersion"]
            async for kind, body in cluster.api.watch(path, version):
                if kind != "BOOKMARK" and body["metadata"]["name"] == SERVICE.name:
                    _note_reason(cluster, body, record)

    tasks = [asyncio.create_task(look()), asyncio.create_task(watch())]
    try:
        yield record
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


def _note_reason(cluster: InstalledCluster, service: Json, record: ScalingRecord) -> None:
    status = service.get("status", {})
    scaling = status.get("scaling", {})
    reason = scaling.get("reason")
    if reason and reason not in record.reasons:
        record.reasons[reason] = scaling["message"]
        slo = (status.get("slo") or {}).get("attained") or condition(service, "SLOMet").get(
            "reason"
        )
        cluster.say(
            f"{scaling['desiredReplicas']} desired, SLO {slo}: {reason}: {scaling['message']}"
        )


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
