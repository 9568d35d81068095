"""A local copy of one listing of the API, kept fresh by a watch."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp

from world.api import Api, ApiError, Json

Key = tuple[str, str]
Changed = Callable[[Key, Json | None], None]

log = logging.getLogger(__name__)
RETRY_SECONDS = 0.5


@dataclass(slots=True)
class Informer:
    """Objects by namespace and name; `changed` hears of each one, gone ones as None."""

    api: Api
    path: str
    changed: Changed
    selector: dict[str, str] = field(default_factory=dict)
    objects: dict[Key, Json] = field(default_factory=dict)
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """List once, then watch for ever; a lost stream is resumed, a lost version listed again."""
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                async for kind, body in self.api.watch(self.path, version, **self.selector):
                    version = body["metadata"]["resourceVersion"]
                    self._handle_event(kind, body)
            except ApiError as error:
                version = ""
                if error.status != 410:
                    log.warning("watching %s: %s", self.path, error)
                    await asyncio.sleep(RETRY_SECONDS)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("watching %s: %s", self.path, error)
                await asyncio.sleep(RETRY_SECONDS)

    def values(self) -> Iterable[Json]:
        return self.objects.values()

    async def _list(self) -> str:
        listing = await self.api.get(self.path, **self.selector)
        bodies = {key_of(item): item for item in listing["items"]}
        for key in self.objects.keys() - bodies.keys():
            self._set(key, None)
        for key, item in bodies.items():
            self._set(key, item)
        self.filled.set()
        return str(listing["metadata"]["resourceVersion"])

    def _handle_event(self, kind: str, body: Json) -> None:
        if kind == "DELETED":
            self._set(key_of(body), None)
        elif kind != "BOOKMARK":
            self._set(key_of(body), body)

    def _set(self, key: Key, value: Json | None) -> None:
        if value is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = value
        self.changed(key, value)


def key_of(item: Json) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
