"""Adapters that come and go while the engine runs."""

from pathlib import Path

from aiohttp import web
from pydantic import BaseModel

from tessera.engine_sim.bodies import parse
from tessera.engine_sim.desk import Desk
from tessera.engine_sim.errors import ApiError
from tessera.engine_sim.replies import Said

_ABOUT = "adapter_config.json"


class Loaded(BaseModel):
    """An adapter to load."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class Unloaded(BaseModel):
    """An adapter to unload."""

    lora_name: str


class Registered(BaseModel):
    """The same as a platform of another kind asks for it."""

    name: str
    src: str


class Adapters:
    """Both ways to load and unload."""

    def __init__(self, desk: Desk) -> None:
        self._loaded = desk.condition.loaded

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/load_lora_adapter", self._load),
            web.post("/v1/unload_lora_adapter", self._unload),
            web.post("/adapters", self._register),
            web.delete("/adapters/{adapter_name}", self._unregister),
        ]

    async def _load(self, request: web.Request) -> web.Response:
        body = parse(Loaded, await request.read(), request.content_type)
        self._add(body)
        return Said(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        body = parse(Unloaded, await request.read(), request.content_type)
        self._remove(body.lora_name)
        return Said(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _register(self, request: web.Request) -> web.Response:
        body = parse(Registered, await request.read(), request.content_type)
        self._add(Loaded(lora_name=body.name, lora_path=body.src))
        return Said(f"Adapter {body.name} registered")

    async def _unregister(self, request: web.Request) -> web.Response:
        name = request.match_info["adapter_name"]
        self._remove(name)
        return Said(f"Adapter {name} unregistered")

    def _add(self, asked: Loaded) -> None:
        if not asked.lora_name or not asked.lora_path:
            raise _wrong("Both 'lora_name' and 'lora_path' must be provided.")
        if asked.lora_name in self._loaded and not asked.load_inplace:
            told = f"The lora adapter '{asked.lora_name}' has already been loaded. If you want to"
            raise _wrong(f"{told} load the adapter in place, set 'load_inplace' to True.")
        if not _exists(asked.lora_path):
            told = f"Loading lora {asked.lora_name} failed: No adapter found for {asked.lora_path}"
            raise ApiError(404, told, "NotFoundError")
        self._loaded[asked.lora_name] = asked.lora_path

    def _remove(self, name: str) -> None:
        if not name:
            raise _wrong("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self._loaded:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self._loaded[name]


def _exists(path: str) -> bool:
    """Folders must hold an adapter; names of the hub are believed."""
    here = path.startswith(("/", ".", "~"))
    return not here or Path(path).expanduser().joinpath(_ABOUT).is_file()


def _wrong(message: str) -> ApiError:
    return ApiError(400, message, "InvalidUserInput")
