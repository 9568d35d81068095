"""Volumes for PersistentVolumeClaims of the StorageClass `world`: folders of this machine."""

import asyncio
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from world.api import CLAIMS, VOLUMES, Api, ApiError, Json
from world.informer import Informer, Key

CLASS = "world"
PROVISIONER = {"pv.kubernetes.io/provisioned-by": "tessera.dev/world"}
RETRY_SECONDS = 0.5
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Claims:
    """Makes a volume for each claim that waits for one; Kubernetes itself binds the two."""

    api: Api
    folder: Path
    _claims: Informer = field(init=False)
    _volumes: Informer = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._claims = Informer(self.api, CLAIMS.path(), self._wake)
        self._volumes = Informer(self.api, VOLUMES.path(), self._wake)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claims.follow())
            group.create_task(self._volumes.follow())
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    await self._settle()
                except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                    log.warning("claims: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                    self._changed.set()

    def _wake(self, _key: Key, _found: Json | None) -> None:
        self._changed.set()

    async def _settle(self) -> None:
        for claim in list(self._claims.values()):
            name = f"pvc-{claim['metadata']['uid']}"
            if _waits(claim) and ("", name) not in self._volumes.objects:
                await self._provide(name, claim)
        for volume in list(self._volumes.values()):
            if _released(volume):
                await self._remove(volume)

    async def _provide(self, name: str, claim: Json) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": meta["uid"]}
        volume = {
            "metadata": {"name": name, "annotations": PROVISIONER},
            "spec": {
                "storageClassName": CLASS,
                "accessModes": spec["accessModes"],
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "persistentVolumeReclaimPolicy": "Delete",
                "hostPath": {"path": str(path)},
                "claimRef": reference | {"namespace": meta["namespace"], "name": meta["name"]},
            },
        }
        try:
            await self.api.create(VOLUMES.path(), volume)
        except ApiError as error:
            if error.status != 409:  # made a moment ago, and not heard of yet
                raise

    async def _remove(self, volume: Json) -> None:
        name = volume["metadata"]["name"]
        try:
            await self.api.delete(VOLUMES.path(name=name))
        except ApiError as error:
            if error.status != 404:
                raise
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _waits(claim: Json) -> bool:
    return claim["spec"].get("storageClassName") == CLASS and not claim["spec"].get("volumeName")


def _released(volume: Json) -> bool:
    annotations: dict[str, str] = volume["metadata"].get("annotations", {})
    released = volume.get("status", {}).get("phase") == "Released"
    return released and annotations.items() >= PROVISIONER.items()
