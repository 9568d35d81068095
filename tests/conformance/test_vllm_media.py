"""What the loader of a real vLLM fetches with the hosts and variables that engines get."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tessera.resources.defaults import newest_version
from tests.conformance.engines import real
from tests.resources.test_egress import engine_container

pytestmark = pytest.mark.vllm
PROGRAM = Path(__file__).with_name("media_loader.py")
# A pixel.
IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@asynccontextmanager
async def image_server() -> AsyncIterator[tuple[int, list[str]]]:
    """Serve an image at every host of this machine; yields the port and who was asked."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.url.host}{request.path}")
        if request.path == "/moved":
            port = request.url.port
            raise web.HTTPFound(f"http://127.0.0.1:{port}/image")
        return web.Response(body=IMAGE, content_type="image/png")

    application = web.Application()
    application.router.add_get("/{path}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


async def fetched(
    venv: Path, hosts: Sequence[str], urls: Sequence[str], env: dict[str, str]
) -> list[Any]:
    """Return for each URL whether the real loader fetches it."""
    process = await asyncio.create_subprocess_exec(
        *(str(venv / "bin" / "python"), str(PROGRAM), ",".join(hosts), *urls),
        env={"HOME": os.environ["HOME"], **real(venv).env, **env},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    sizes = json.loads(output.splitlines()[-1])
    assert all(size in (None, [1, 1]) for size in sizes)
    return [size is not None for size in sizes]


def settings(*listed: str) -> tuple[list[str], dict[str, str]]:
    """Return the hosts and the variables that an engine gets."""
    container = engine_container(newest_version(), engine={"allowedMediaDomains": list(listed)})
    arguments = container["args"]
    first = arguments.index("--allowed-media-domains") + 1
    hosts = [*arguments[first : first + max(len(listed), 1)]]
    env = {each["name"]: each["value"] for each in container["env"] if "MEDIA" in each["name"]}
    return hosts, env


async def test_the_real_loader_fetches_from_listed_hosts_alone(venv: Path, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(IMAGE)
    data = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
    async with image_server() as (port, asked):
        other, listed = f"http://127.0.0.1:{port}/image", f"http://localhost:{port}/image"
        moved = f"http://localhost:{port}/moved"
        urls = [data, other, listed, moved, f"file://{file}", f"http://localhost@127.0.0.1:{port}/"]

        # Without any host it asks all of them, and follows redirects to any other.
        assert await fetched(venv, (), urls[:4], {}) == [True, True, True, True]
        assert await fetched(venv, ("localhost",), [moved], {}) == [True]
        assert "127.0.0.1/image" in asked
        asked.clear()

        hosts, env = settings()
        assert await fetched(venv, hosts, urls, env) == [True, *[False] * 5]
        assert asked == []

        hosts, env = settings("localhost")
        assert await fetched(venv, hosts, urls, env) == [True, False, True, *[False] * 3]
        assert set(asked) == {"localhost/image", "localhost/moved"}
