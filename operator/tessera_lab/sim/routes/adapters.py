"""Routes that load and unload LoRA adapters while the engine runs."""

from pathlib import Path

from aiohttp import web
from pydantic import BaseModel

from tessera_lab.sim.bodies import read_body
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


def adapter_routes(adapter_paths: dict[str, str]) -> list[web.RouteDef]:
    """Return `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

    async def load(request: web.Request) -> web.Response:
        body = await read_body(LoadAdapterBody, request)
        name, path = body.lora_name, body.lora_path
        if not name or not path:
            raise _invalid_input("Both 'lora_name' and 'lora_path' must be provided.")
        if name in adapter_paths and not body.load_inplace:
            raise _invalid_input(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
        if not _exists(path):
            raise _not_found(f"Loading lora {name} failed: No adapter found for {path}")
        adapter_paths[name] = path
        return UntypedResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(request: web.Request) -> web.Response:
        name = (await read_body(UnloadAdapterBody, request)).lora_name
        if not name:
            raise _invalid_input("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in adapter_paths:
            raise _not_found(f"The lora adapter '{name}' cannot be found.")
        del adapter_paths[name]
        return UntypedResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return [
        web.post("/v1/load_lora_adapter", load),
        web.post("/v1/unload_lora_adapter", unload),
    ]


def _exists(path: str) -> bool:
    """Return whether a local folder has an adapter; names on the hub are not checked."""
    is_local = path.startswith(("/", ".", "~"))
    return not is_local or Path(path).expanduser().joinpath(_ADAPTER_CONFIG).is_file()


def _invalid_input(message: str) -> EngineApiError:
    return EngineApiError(400, message, "InvalidUserInput")


def _not_found(message: str) -> EngineApiError:
    return EngineApiError(404, message, "NotFoundError")
