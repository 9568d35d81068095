"""Spot nodes that a cloud takes back: what says so on the node, and the end of the machine."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import aiohttp

from world import clock
from world.api import NODES, PODS, STRATEGIC, Api, ApiError, Json
from world.autoscaling.drain import evict, is_own
from world.autoscaling.taints import add_taint
from world.kubelet.kubelet import Kubelet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """How a cluster learns of it."""

    taint: tuple[str, str]
    """Key and value, with the effect `NoSchedule`."""
    condition: tuple[str, str, str] | None = None
    """Type, reason and message; the status is True."""
    cordon: bool = False
    drain: Literal["Eviction", "Deletion"]
    """Evictions ask PodDisruptionBudgets; a kubelet that shuts down does not."""


SIGNALS = {
    # AWS without Karpenter: the node termination handler with `TAINT_NODE`.
    "awsNodeTerminationHandler": Signal(
        taint=("aws-node-termination-handler/spot-itn", "world"), cordon=True, drain="Eviction"
    ),
    "karpenter": Signal(taint=("karpenter.sh/disrupted", ""), drain="Eviction"),
    # GKE: the kubelet shuts down gracefully.
    "gke": Signal(taint=("cloud.google.com/impending-node-termination", ""), drain="Deletion"),
    # AKS: node problem detector and node auto-drain.
    "aks": Signal(
        taint=("remediator.aks.microsoft.com/unschedulable", ""),
        condition=("VMEventScheduled", "PreemptScheduled", "Preempt Scheduled: {end}"),
        cordon=True,
        drain="Eviction",
    ),
}


async def give_notice(
    api: Api,
    tasks: asyncio.TaskGroup,
    kubelet: Kubelet,
    pods: Callable[[], Iterable[Json]],
    by: str,
    seconds: float,
) -> None:
    """Announce the end of a node, drain it meanwhile, and end it after so many seconds."""
    name, signal = kubelet.host.node.name, SIGNALS[by]
    await add_taint(api, name, *signal.taint)
    if signal.cordon:
        await api.patch(NODES.path(name=name), {"spec": {"unschedulable": True}})
    if signal.condition is not None:
        condition = _condition(*signal.condition, seconds=seconds)
        body = {"status": {"conditions": [condition]}}
        await api.patch(NODES.path(name=name, sub="status"), body, STRATEGIC)
    tasks.create_task(_take_back(api, kubelet, list(pods()), signal, seconds))


async def _take_back(
    api: Api, kubelet: Kubelet, pods: list[Json], signal: Signal, seconds: float
) -> None:
    """The machine ends at its time, whatever still runs on it."""
    own = [pod for pod in pods if is_own(pod)]
    name = kubelet.host.node.name
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if signal.drain == "Eviction":
                    await evict(api, own)
                else:
                    await _shut_down(api, own, seconds)
                await asyncio.Event().wait()
        await kubelet.end()
        await api.delete(NODES.path(name=name))
    except (ApiError, aiohttp.ClientError) as error:
        log.warning("taking back %s: %s", name, error)


async def _shut_down(api: Api, pods: list[Json], seconds: float) -> None:
    for pod in pods:
        meta = pod["metadata"]
        grace = min(int(seconds), int(pod["spec"].get("terminationGracePeriodSeconds", 30)))
        with contextlib.suppress(ApiError):  # it has ended by itself
            path = PODS.path(meta["namespace"], meta["name"])
            await api.delete(path, {"gracePeriodSeconds": grace})


def _condition(kind: str, reason: str, message: str, *, seconds: float) -> Json:
    end = clock.after(seconds)
    moment = clock.stamp()
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message.format(end=f"{end:%a, %d %b %Y %H:%M:%S} GMT"),
        "lastHeartbeatTime": moment,
        "lastTransitionTime": moment,
    }
