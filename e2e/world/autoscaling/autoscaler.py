"""Karpenter and the cluster autoscaler, as the world plays them."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from world.api import NODES, PODS, Api, ApiError, Json
from world.autoscaling.drain import evict, is_own, is_present
from world.autoscaling.fit import (
    Amounts,
    known_capacity,
    misfit,
    requests,
    shortage,
    subtract,
    why_not,
)
from world.autoscaling.groups import GroupState, Launch
from world.autoscaling.reports import (
    ClusterAutoscalerReports,
    KarpenterReports,
    Obstacle,
    Reports,
    refusal_text,
)
from world.autoscaling.taints import add_taint, remove_taint
from world.errors import WorldError
from world.fleet import NodeGroup
from world.informer import Informer
from world.kubelet.quantities import number
from world.machines import Machines

TICK_SECONDS = 0.2
NOT_READY = "node.kubernetes.io/not-ready"
log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Place:
    """A node that comes or is there, and what is free on it."""

    name: str
    state: GroupState
    node: Json | None
    """None while it has not registered."""
    free: Amounts

    def take(self, pod: Json) -> bool:
        """Reserve it for a pod that fits."""
        if self.node is None:
            obstacle = why_not(pod, self.state.group, self.free)
        else:
            labels = self.node["metadata"].get("labels", {})
            taints = self.node["spec"].get("taints", [])
            # The API puts this one on every new node, and takes it away once the node is ready.
            lasting = [taint for taint in taints if taint["key"] != NOT_READY]
            obstacle = misfit(pod, labels, lasting) or shortage(requests(pod), self.free)
        if obstacle is None:
            self.free = subtract(self.free, requests(pod))
        return obstacle is None


@dataclass(slots=True, kw_only=True)
class Autoscaler:
    """Compares pods with nodes again and again; what it has asked for is its only memory."""

    api: Api
    machines: Machines
    states: Mapping[str, GroupState]
    tasks: asyncio.TaskGroup
    _pods: Informer = field(init=False)
    _nodes: Informer = field(init=False)
    _reports: dict[str, Reports] = field(init=False)
    _nominated: set[str] = field(default_factory=set)
    """Nodes that a pod waits for."""

    def __post_init__(self) -> None:
        self._pods = Informer(self.api, PODS.path(), lambda *_: None)
        self._nodes = Informer(self.api, NODES.path(), lambda *_: None)
        self._reports = {
            "karpenter": KarpenterReports(self.api),
            "clusterAutoscaler": ClusterAutoscalerReports(self.api),
        }

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.follow())
            group.create_task(self._nodes.follow())
            group.create_task(self._work())

    async def disrupt(self, name: str) -> None:
        """Consolidate a node: its pods are evicted, and it goes once it is empty.

        Raises `WorldError` where an annotation keeps it.
        """
        state, node = self._state_of(name), self._nodes.objects.get(("", name))
        if node is None:
            raise WorldError(f"node {name} has not registered")
        if reason := self._keeper(state, node):
            await self._reports_of(state).blocked(node, reason)
            raise WorldError(reason)
        await self._taint(state, name)
        state.leaving[name] = "Drained"
        self.tasks.create_task(evict(self.api, [pod for pod in self._on(name) if is_own(pod)]))

    async def _work(self) -> None:
        await self._pods.filled.wait()
        await self._nodes.filled.wait()
        while True:
            try:
                await self._step(asyncio.get_running_loop().time())
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("autoscaler: %s", str(error) or type(error).__name__)
            await asyncio.sleep(TICK_SECONDS)

    async def _step(self, now: float) -> None:
        for state in self.states.values():
            state.advance(now)
            await self._receive(state, now)
            await self._follow_nodes(state)
        await self._scale_up(now)
        for state in self.states.values():
            await self._scale_down(state, now)

    async def _receive(self, state: GroupState, now: float) -> None:
        """Boot the machines that are due, and forget those that never came."""
        for name, launch in list(state.launches.items()):
            if launch.due is not None and launch.due <= now:
                await self.machines.boot(self.tasks, launch.node, new=True, driver=launch.driver)
                state.nodes[name] = state.launches.pop(name)
            elif launch.give_up_at <= now:
                del state.launches[name]
                state.retry_at = now + state.group.retry_seconds
                await self._reports_of(state).gave_up(launch)

    async def _follow_nodes(self, state: GroupState) -> None:
        """Report what nodes lack; a machine whose object was deleted ends."""
        for name, launch in list(state.nodes.items()):
            node = self._nodes.objects.get(("", name))
            if node is None:
                if name in state.missing:
                    await self._end(state, name)
                continue
            allocatable = node["status"].get("allocatable", {})
            missing = next(
                (asked for asked in launch.asked if not int(allocatable.get(asked, 0))), None
            )
            if name not in state.missing or state.missing[name] != missing:
                await self._reports_of(state).registered(launch, missing)
                state.missing[name] = missing

    async def _scale_up(self, now: float) -> None:
        places, self._nominated = list(self._places()), set()
        for pod in sorted(filter(_is_unschedulable, self._pods.values()), key=_age):
            place = next((place for place in places if place.take(pod)), None)
            if place is None:
                place = await self._new_place(pod, now)
                if place is None:
                    continue
                places.append(place)
                place.take(pod)
            self._nominated.add(place.name)

    async def _new_place(self, pod: Json, now: float) -> _Place | None:
        """Ask the first group that suits a pod for a machine."""
        obstacles: dict[str, list[Obstacle]] = {}
        for state in self.states.values():
            if self._ignores(state, pod):
                continue
            obstacle = _obstacle(state, pod, now)
            if obstacle is None:
                return await self._ask(state, pod, now)
            obstacles.setdefault(state.group.autoscaler, []).append(obstacle)
        for autoscaler, its_obstacles in obstacles.items():
            await self._reports[autoscaler].helpless(pod, its_obstacles)
        return None

    async def _ask(self, state: GroupState, pod: Json, now: float) -> _Place | None:
        reports = self._reports_of(state)
        if state.arrival in ("QuotaExceeded", "NoCapacity"):
            state.refusals += 1
            state.retry_at = now + state.group.retry_seconds
            await reports.refused(state, refusal_text(state), [pod])
            return None
        asked = sorted(name for name in requests(pod) if "/" in name)
        launch = state.launch(tuple(asked), now)
        await reports.launched(launch, [pod])
        return self._launch_place(state, launch)

    async def _scale_down(self, state: GroupState, now: float) -> None:
        for name in list(state.nodes):
            node = self._nodes.objects.get(("", name))
            if node is None:
                continue
            used = any(is_own(pod) for pod in self._on(name))
            if used or name in self._nominated:
                state.empty_since.pop(name, None)
                if state.leaving.get(name) == "Empty":  # a pod was faster than the taint
                    del state.leaving[name]
                    await self._untaint(state, name)
                continue
            since = state.empty_since.setdefault(name, now)
            if name in state.leaving:
                await self._remove(state, name)
            elif now - since >= state.group.empty_seconds:
                if reason := self._keeper(state, node):
                    await self._reports_of(state).blocked(node, reason)
                else:
                    await self._taint(state, name)
                    state.leaving[name] = "Empty"

    async def _remove(self, state: GroupState, name: str) -> None:
        try:
            await self.api.delete(NODES.path(name=name))
        except ApiError as error:
            if error.status != 404:
                raise
        await self._end(state, name)

    async def _end(self, state: GroupState, name: str) -> None:
        state.forget(name)
        await self.machines.end(name)
        await self._reports_of(state).removed(name)

    def _places(self) -> Iterator[_Place]:
        for state in self.states.values():
            for launch in state.launches.values():
                yield self._launch_place(state, launch)
            for name, launch in state.nodes.items():
                node = self._nodes.objects.get(("", name))
                if node is None:  # it has registered, and is not seen yet
                    yield self._launch_place(state, launch)
                elif name not in state.leaving:
                    yield _Place(name=name, state=state, node=node, free=self._free(state, node))

    def _launch_place(self, state: GroupState, launch: Launch) -> _Place:
        free = known_capacity(state.group)
        return _Place(name=launch.node.name, state=state, node=None, free=free)

    def _free(self, state: GroupState, node: Json) -> Amounts:
        """Until its device plugin offers something, a node has what was expected of it."""
        allocatable = {name: number(text) for name, text in node["status"]["allocatable"].items()}
        equipped = any(amount for name, amount in allocatable.items() if "/" in name)
        free = allocatable
        if state.group.template.gpus and not equipped:
            free = known_capacity(state.group)
        for pod in self._on(node["metadata"]["name"]):
            free = subtract(free, requests(pod))
        return free

    def _on(self, name: str) -> list[Json]:
        """The pods of a node that have not ended, or not been taken away."""
        pods = self._pods.values()
        return [pod for pod in pods if pod["spec"].get("nodeName") == name and is_present(pod)]

    def _keeper(self, state: GroupState, node: Json) -> str | None:
        """Return the annotation that keeps a node, in the words of Karpenter."""
        habits = self._reports_of(state).habits
        key, value = habits.node_keeper
        if node["metadata"].get("annotations", {}).get(key) == value:
            return f'disruption is blocked through the "{key}" annotation'
        key, value = habits.pod_keeper
        for pod in self._on(node["metadata"]["name"]):
            meta = pod["metadata"]
            if meta.get("annotations", {}).get(key) == value:
                return f'pod has "{key}" annotation (Pod={meta["namespace"]}/{meta["name"]})'
        return None

    def _ignores(self, state: GroupState, pod: Json) -> bool:
        below = self._reports_of(state).habits.ignores_below
        return below is not None and int(pod["spec"].get("priority", 0)) < below

    def _reports_of(self, state: GroupState) -> Reports:
        return self._reports[state.group.autoscaler]

    def _state_of(self, name: str) -> GroupState:
        for state in self.states.values():
            if name in state.nodes:
                return state
        raise WorldError(f"no node group has made node {name}")

    async def _taint(self, state: GroupState, name: str) -> None:
        await add_taint(self.api, name, self._reports_of(state).habits.disrupted_taint)

    async def _untaint(self, state: GroupState, name: str) -> None:
        await remove_taint(self.api, name, self._reports_of(state).habits.disrupted_taint)


def _obstacle(state: GroupState, pod: Json, now: float) -> Obstacle | None:
    """Return why a group makes no node for a pod just now."""
    group: NodeGroup = state.group
    if text := why_not(pod, group, known_capacity(group)):
        return Obstacle("Resources" if text.startswith("Insufficient") else "Selection", text)
    if state.size >= group.max_nodes:
        return Obstacle("Full", group.name)
    return Obstacle("BackOff", group.name) if now < state.retry_at else None


def _is_unschedulable(pod: Json) -> bool:
    """Return whether the scheduler has found no node for a pod."""
    conditions: Sequence[Json] = pod.get("status", {}).get("conditions", [])
    return (
        not pod["spec"].get("nodeName")
        and "deletionTimestamp" not in pod["metadata"]
        and any(
            entry["type"] == "PodScheduled"
            and entry["status"] == "False"
            and entry.get("reason") == "Unschedulable"
            for entry in conditions
        )
    )


def _age(pod: Json) -> tuple[str, str, str]:
    meta = pod["metadata"]
    return meta["creationTimestamp"], meta["namespace"], meta["name"]
