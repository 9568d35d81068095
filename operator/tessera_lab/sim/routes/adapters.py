"""Routes that load and unload LoRA adapters while the engine runs."""

from pathlib import Path

from aiohttp import web
from pydantic import BaseModel

from tessera_lab.sim.bodies import parse_body
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.server import UntypedResponse

_ADAPTER_CONFIG = "adapter_config.json"


class LoadAdapterBody(BaseModel):
    """An adapter to load."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterBody(BaseModel):
    """An adapter to unload."""

    lora_name: str


class AdapterRoutes:
    """`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

    def __init__(self, dispatcher: GenerationDispatcher) -> None:
        self._adapter_paths = dispatcher.state.adapter_paths

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/load_lora_adapter", self._load),
            web.post("/v1/unload_lora_adapter", self._unload),
        ]

    async def _load(self, request: web.Request) -> web.Response:
        body = parse_body(LoadAdapterBody, await request.read(), request.content_type)
        self._add(body)
        return UntypedResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        body = parse_body(UnloadAdapterBody, await request.read(), request.content_type)
        self._remove(body.lora_name)
        return UntypedResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _add(self, body: LoadAdapterBody) -> None:
        if not body.lora_name or not body.lora_path:
            raise _invalid_input("Both 'lora_name' and 'lora_path' must be provided.")
        if body.lora_name in self._adapter_paths and not body.load_inplace:
            message = f"The lora adapter '{body.lora_name}' has already been loaded. If you want to"
            raise _invalid_input(
                f"{message} load the adapter in place, set 'load_inplace' to True."
            )
        if not _exists(body.lora_path):
            message = f"Loading lora {body.lora_name} failed: No adapter found for {body.lora_path}"
            raise EngineApiError(404, message, "NotFoundError")
        self._adapter_paths[body.lora_name] = body.lora_path

    def _remove(self, name: str) -> None:
        if not name:
            raise _invalid_input("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self._adapter_paths:
            message = f"The lora adapter '{name}' cannot be found."
            raise EngineApiError(404, message, "NotFoundError")
        del self._adapter_paths[name]


def _exists(path: str) -> bool:
    """Return whether a local folder has an adapter; names on the hub are not checked."""
    is_local = path.startswith(("/", ".", "~"))
    return not is_local or Path(path).expanduser().joinpath(_ADAPTER_CONFIG).is_file()


def _invalid_input(message: str) -> EngineApiError:
    return EngineApiError(400, message, "InvalidUserInput")
