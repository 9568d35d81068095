"""The volumes of a pod as folders of this machine."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from world.api import CLAIMS, CONFIG_MAPS, SECRETS, VOLUMES, Api, ApiError, Json
from world.kubelet import payload
from world.kubelet.environment import MissingReferenceError, PodFacts, field, resource
from world.kubelet.payload import DEFAULT_MODE, VolumeFile
from world.kubelet.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """Makes the volumes of one pod, and makes their contents new again when asked once more."""

    api: Api
    tokens: Tokens
    folder: Path
    host_folder: Path
    """Stands for the file system of the node, for `hostPath`."""
    facts: PodFacts

    async def make(self) -> dict[str, Path]:
        """The folder of each volume; `MissingReferenceError` says what is not there yet."""
        folders: dict[str, Path] = {}
        for volume in self.facts.pod["spec"].get("volumes", []):
            path = await self._place(volume)
            path.mkdir(parents=True, exist_ok=True)
            folders[volume["name"]] = path
        await self.refresh()
        return folders

    async def refresh(self) -> None:
        """Write what ConfigMaps, Secrets, the downward API and tokens say now."""
        for volume in self.facts.pod["spec"].get("volumes", []):
            sources = _sources(volume)
            if sources is None:
                continue
            files: dict[str, VolumeFile] = {}
            for source in sources:
                async for name, file in self._files(source):
                    files[name] = file
            payload.write(self.folder / volume["name"], files)

    async def _place(self, volume: Json) -> Path:
        if "hostPath" in volume:
            return (self.host_folder / str(volume["hostPath"]["path"]).lstrip("/")).resolve()
        if "persistentVolumeClaim" in volume:
            return await self._claim_folder(volume["persistentVolumeClaim"]["claimName"])
        if "emptyDir" in volume or _sources(volume) is not None:
            return self.folder / str(volume["name"])
        kind = next(key for key in volume if key != "name")
        raise MissingReferenceError(f"volume {volume['name']}: the world knows no {kind} volumes")

    async def _claim_folder(self, name: str) -> Path:
        namespace = self.facts.pod["metadata"]["namespace"]
        claim = await self._read(CLAIMS.path(namespace, name), f'persistentvolumeclaim "{name}"')
        volume_name = claim["spec"].get("volumeName") if claim else None
        if not volume_name:
            raise MissingReferenceError(f'persistentvolumeclaim "{name}" is not bound')
        volume = await self.api.get(VOLUMES.path(name=volume_name))
        if "hostPath" not in volume["spec"]:
            raise MissingReferenceError(
                f"persistentvolume {volume_name}: the world knows only hostPath"
            )
        return Path(volume["spec"]["hostPath"]["path"])

    async def _files(self, source: Json) -> AsyncIterator[tuple[str, VolumeFile]]:
        if "serviceAccountToken" in source:
            projection = source["serviceAccountToken"]
            seconds = projection.get("expirationSeconds", 3600)
            token = await self.tokens.get(self.facts.pod, projection.get("audience", ""), seconds)
            yield projection["path"], VolumeFile(token.encode())
        elif "downwardAPI" in source:
            for item in source["downwardAPI"].get("items", []):
                mode = _mode(item, source["downwardAPI"])
                yield item["path"], VolumeFile(self._downward(item).encode(), mode)
        else:
            async for entry in self._keys(source):
                yield entry

    async def _keys(self, source: Json) -> AsyncIterator[tuple[str, VolumeFile]]:
        """The keys of a ConfigMap or Secret, all of them or the chosen ones."""
        secret = "secret" in source
        reference = source["secret"] if secret else source["configMap"]
        name = reference.get("name") or reference["secretName"]
        kind, label = (SECRETS, "secret") if secret else (CONFIG_MAPS, "configmap")
        optional = reference.get("optional", False)
        path = kind.path(self.facts.pod["metadata"]["namespace"], name)
        body = await self._read(path, f'{label} "{name}"', optional=optional)
        content = contents(body or {})
        for item in reference.get("items") or [{"key": key, "path": key} for key in content]:
            if item["key"] in content:
                yield item["path"], VolumeFile(content[item["key"]], _mode(item, reference))
            elif not optional:
                raise MissingReferenceError(f'{label} "{name}" has no key {item["key"]}')

    async def _read(self, path: str, label: str, *, optional: bool = False) -> Json | None:
        try:
            return await self.api.get(path)
        except ApiError as error:
            if error.status == 404 and optional:
                return None
            raise MissingReferenceError(
                f"{label} not found" if error.status == 404 else str(error)
            ) from error

    def _downward(self, item: Json) -> str:
        if "fieldRef" in item:
            return field(item["fieldRef"]["fieldPath"], self.facts)
        containers = self.facts.pod["spec"]["containers"]
        return resource(item["resourceFieldRef"], containers, self.facts.allocatable)


def contents(body: Json) -> dict[str, bytes]:
    """The values of a ConfigMap or Secret."""
    if body.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in body.get("data", {}).items()}
    text = {key: value.encode() for key, value in body.get("data", {}).items()}
    return text | {k: base64.b64decode(v) for k, v in body.get("binaryData", {}).items()}


def _sources(volume: Json) -> list[Json] | None:
    """What the files of a volume come from; None for volumes without files of their own."""
    if "projected" in volume:
        default = volume["projected"].get("defaultMode", DEFAULT_MODE)
        sources = volume["projected"].get("sources", [])
        return [
            {kind: {"defaultMode": default} | source for kind, source in s.items()} for s in sources
        ]
    for kind in ("configMap", "secret", "downwardAPI"):
        if kind in volume:
            return [{kind: volume[kind]}]
    return None


def _mode(item: Json, source: Json) -> int:
    return int(item.get("mode") or source.get("defaultMode") or DEFAULT_MODE)
