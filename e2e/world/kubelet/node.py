"""A node as the API knows it: its object, its status and its heart-beat."""

import asyncio
import itertools
import logging
import os
import platform
from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from world import clock
from world.api import LEASES, NODES, STRATEGIC, Api, ApiError, Json
from world.control_plane import HeartBeats
from world.fleet import Node
from world.kubelet.host import Host
from world.labels import labels, provider_id, taints

VERSION = "v1.36.3"
KWOK = {"kwok.x-k8s.io/node": "fake"}
LEASE_NAMESPACE = "kube-node-lease"
RETRY_SECONDS = 0.5
# Renewals of the Lease from one look at the node's own condition to the next.
LOOK_RENEWALS = 3

log = logging.getLogger(__name__)


Amounts = Mapping[str, str]


def manifest(
    node: Node,
    address: str,
    port: int,
    capacity: Amounts,
    allocatable: Amounts,
    *,
    discovered: bool = True,
) -> Json:
    """The object with its status, as a kubelet registers it."""
    meta: Json = {"name": node.name, "labels": labels(node, discovered=discovered)}
    if not node.live:
        meta["annotations"] = KWOK
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta,
        "spec": {
            "providerID": provider_id(node),
            "taints": [taint.model_dump() for taint in taints(node)],
        },
        "status": {
            "capacity": dict(capacity),
            "allocatable": dict(allocatable),
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": node.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": _conditions(),
            "nodeInfo": _info(),
        },
    }


async def register(api: Api, body: Json) -> None:
    """Make the node exist and be ready; also after a silence, in which it was declared dead."""
    try:
        await api.create(NODES.path(), body)
    except ApiError as error:
        if error.status != 409:
            raise
        await patch_status(api, body["metadata"]["name"], body["status"])


async def patch_status(api: Api, name: str, status: Json) -> None:
    """Write some of a node's status; resources that are not named stay as they are."""
    await api.patch(NODES.path(name=name, sub="status"), {"status": status}, STRATEGIC)


async def send_heartbeats(
    host: Host, beats: HeartBeats, resync: Callable[[], Awaitable[None]]
) -> None:
    """Renew the node's Lease for as long as it is not silent.

    After a Lease that came late everything is reported again for a while: the node controller may
    have declared the node and its pods dead, and does so until it has seen the Lease. On a busy
    machine it may do so of a Lease that was in time; like the real kubelet this one then finds in
    the API that its node is not ready.
    """
    loop = asyncio.get_running_loop()
    renewed_at, resync_until = loop.time(), 0.0
    for renewal in itertools.count(1):
        await host.connected.wait()
        try:
            await _renew(host.machine.api, host.node.name, beats)
            if loop.time() - renewed_at > beats.lease_seconds:
                resync_until = loop.time() + 2 * beats.grace_seconds
            renewed_at = loop.time()
            if renewed_at < resync_until or (
                renewal % LOOK_RENEWALS == 0
                and not await _is_ready(host.machine.api, host.node.name)
            ):
                await resync()
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            words = str(error) or type(error).__name__
            log.warning("heart-beat of %s: %s", host.node.name, words)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            await asyncio.sleep(beats.renew_seconds)


async def _is_ready(api: Api, name: str) -> bool:
    conditions = (await api.get(NODES.path(name=name)))["status"]["conditions"]
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


async def _renew(api: Api, name: str, beats: HeartBeats) -> None:
    renewed = {"spec": {"renewTime": clock.micro_stamp()}}
    try:
        await api.patch(LEASES.path(LEASE_NAMESPACE, name), renewed)
    except ApiError as error:
        if error.status != 404:
            raise
        await api.create(LEASES.path(LEASE_NAMESPACE), await _lease(api, name, beats))


async def _lease(api: Api, name: str, beats: HeartBeats) -> Json:
    node = await api.get(NODES.path(name=name))
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    return {
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": beats.lease_seconds,
            "renewTime": clock.micro_stamp(),
        },
    }


def _conditions() -> list[Json]:
    healthy = {
        "MemoryPressure": ("False", "KubeletHasSufficientMemory"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure"),
        "PIDPressure": ("False", "KubeletHasSufficientPID"),
        "Ready": ("True", "KubeletReady"),
    }
    moment = clock.stamp()
    times = {"lastHeartbeatTime": moment, "lastTransitionTime": moment}
    return [
        {"type": kind, "status": state, "reason": reason, "message": reason, **times}
        for kind, (state, reason) in healthy.items()
    ]


def _info() -> Json:
    return {
        "architecture": "amd64",
        "bootID": "",
        "containerRuntimeVersion": "world://1",
        "kernelVersion": platform.release(),
        "kubeProxyVersion": "",
        "kubeletVersion": VERSION,
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": f"tessera world ({os.uname().sysname})",
        "systemUUID": "",
    }
