"""A model hub on a loopback address: the few paths of the public one that are asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_valid"  # noqa: S105 - of a hub that is made up


@dataclass(kw_only=True)
class Hub:
    """Repositories by name, each with its files by path."""

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    """Answered only to `TOKEN`, as a gated model is."""
    url: str = ""
    store: str = ""
    """Where weights are sent for, as the public hub does; empty keeps them here."""
    requested_paths: list[str] = field(default_factory=list)
    """Every path that was asked for."""
    tokens: set[str] = field(default_factory=set)
    """What came as authorization."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is clear, weights stop after their first half."""

    def __post_init__(self) -> None:
        self.open.set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/{org}/{name}/revision/{revision}", self._listing)
        app.router.add_get("/{org}/{name}/resolve/{revision}/{path:.+}", self._file)
        return app

    async def _listing(self, request: web.Request) -> web.Response:
        files = self._repository(request)
        siblings = [{"rfilename": name, "size": len(files[name])} for name in sorted(files)]
        return web.json_response({"sha": COMMIT, "siblings": siblings})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        files, path = self._repository(request), request.match_info["path"]
        if path not in files:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        if self.store and path.endswith(".safetensors"):
            raise web.HTTPFound(self.store + request.path)
        since = int(request.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        content = files[path][since:]
        response = web.StreamResponse(
            status=206 if since else 200,
            headers={"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))},
        )
        await response.prepare(request)
        if path.endswith(".safetensors"):
            half = len(content) // 2
            await response.write(content[:half])
            await self.open.wait()
            content = content[half:]
        await response.write(content)
        return response

    def _repository(self, request: web.Request) -> Mapping[str, bytes]:
        self.requested_paths.append(request.path)
        self.tokens |= {request.headers.get("Authorization", "")}
        name = f"{request.match_info['org']}/{request.match_info['name']}"
        if name not in self.repositories:
            raise web.HTTPUnauthorized(headers={"X-Error-Message": "Repository not found"})
        if name in self.gated and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = f"Access to model {name} is restricted."
            raise web.HTTPUnauthorized(
                headers={"X-Error-Code": "GatedRepo", "X-Error-Message": message}
            )
        return self.repositories[name]


@asynccontextmanager
async def serve_hub(hub: Hub) -> AsyncIterator[Hub]:
    """Answer for as long as the block runs."""
    runner = web.AppRunner(hub.app(), access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    hub.url = f"http://{host}:{port}"
    try:
        yield hub
    finally:
        hub.open.set()
        await runner.cleanup()


def a_model(**changes: object) -> dict[str, bytes]:
    """The files of a model with 100 million weights, which are not there."""
    config = {
        "model_type": "llama",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        **changes,
    }
    return {
        "README.md": b"# A model",
        "config.json": json.dumps(config).encode(),
        "model.safetensors": bytes(range(256)) * 4096,
        "pytorch_model.bin": b"the same in the old form",
        "tokenizer/tokenizer.json": b"{}",
    }
