"""Events of pods, for `kubectl describe`."""

import asyncio
import itertools
import logging
from dataclasses import dataclass, field

import aiohttp

from world.api import EVENTS, Api, ApiError, Json
from world.clock import stamp

# The same message about the same pod is not repeated sooner.
SILENT_SECONDS = 30

log = logging.getLogger(__name__)


@dataclass(slots=True)
class EventRecorder:
    """Writes in the background: a lost event does no harm."""

    api: Api
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _recorded: dict[tuple[str, str, str], float] = field(default_factory=dict)
    _writing: set[asyncio.Task[None]] = field(default_factory=set)

    def record(self, pod: Json, reason: str, message: str, *, warning: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        words = pod["metadata"]["uid"], reason, message
        if now - self._recorded.get(words, -SILENT_SECONDS) < SILENT_SECONDS:
            return
        self._recorded = {
            key: at for key, at in self._recorded.items() if now - at < SILENT_SECONDS
        }
        self._recorded[words] = now
        task = asyncio.create_task(self._write(pod, reason, message, warning))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, pod: Json, reason: str, message: str, warning: bool) -> None:
        meta = pod["metadata"]
        involved = {"apiVersion": "v1", "kind": "Pod", "namespace": meta["namespace"]}
        event = {
            "metadata": {"name": f"{meta['name']}.{next(self._numbers)}.{meta['uid'][:8]}"},
            "involvedObject": involved | {"name": meta["name"], "uid": meta["uid"]},
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if warning else "Normal",
            "source": {"component": "kubelet", "host": pod["spec"].get("nodeName", "")},
            "firstTimestamp": stamp(),
            "lastTimestamp": stamp(),
            "count": 1,
        }
        try:
            await self.api.create(EVENTS.path(meta["namespace"]), event)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.info("event %s of %s: %s", reason, meta["name"], error)
