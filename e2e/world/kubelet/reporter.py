"""Writes a pod's status to the API, and removes the pod at its end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import aiohttp

from world import clock
from world.api import PODS, STRATEGIC, ApiError, Json
from world.kubelet.host import Host
from world.kubelet.status import PodView, status

RETRY_SECONDS = 0.5
log = logging.getLogger(__name__)

Since = dict[str, tuple[str, str]]


@dataclass(slots=True)
class Reporter:
    """Writes the newest status only: what changed twice in between is written once."""

    host: Host
    view: Callable[[], PodView]
    _since: Since = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: Json | None = None

    def changed(self) -> None:
        self._changed.set()

    def resend(self) -> None:
        """Others may have written the status meanwhile."""
        self._sent = None
        self._changed.set()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.host.connected.wait()
            if not await self._report():
                await asyncio.sleep(RETRY_SECONDS)
                self._changed.set()

    async def send_final(self) -> None:
        """The status that a pod is remembered by, sent again until the API has it."""
        await self.host.connected.wait()
        while not await self._report():
            await asyncio.sleep(RETRY_SECONDS)

    async def remove(self) -> None:
        """Let the object go, and the name with it; another pod of this name is left alone."""
        await self.host.connected.wait()
        meta = self.view().pod["metadata"]
        options: Json = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
        path = PODS.path(meta["namespace"], meta["name"])
        while True:
            if await self._send(self.host.machine.api.delete(path, options)):
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _report(self) -> bool:
        view = self.view()
        pod_status = status(replace(view, since=self._since), clock.now())
        self._since |= {
            condition["type"]: (condition["status"], condition["lastTransitionTime"])
            for condition in pod_status.get("conditions", [])
        }
        if pod_status == self._sent:
            return True
        meta = view.pod["metadata"]
        # With its uid in the patch, the status of a pod never lands on one of the same name.
        body = {"metadata": {"uid": meta["uid"]}, "status": pod_status}
        path = PODS.path(meta["namespace"], meta["name"], "status")
        accepted = await self._send(self.host.machine.api.patch(path, body, STRATEGIC))
        self._sent = pod_status if accepted else None
        return accepted

    async def _send(self, request: Awaitable[Json]) -> bool:
        """Whether the API has taken it, or has no such pod any more."""
        try:
            await request
        except ApiError as error:
            if error.status not in (404, 409):
                log.warning("status of a pod: %s", error)
            return error.status in (404, 409)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("status of a pod: %s", error)
            return False
        return True


def since(pod: Json) -> Since:
    """When the conditions of a pod changed last, as its status has it."""
    conditions = pod.get("status", {}).get("conditions", [])
    return {
        condition["type"]: (condition["status"], condition.get("lastTransitionTime", ""))
        for condition in conditions
    }
