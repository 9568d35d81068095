"""The handlers that probes and hooks share: exec, httpGet, tcpSocket and sleep."""

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from world.api import Json
from world.kubelet.instances import Sessions, start_process

ANSWER_BYTES = 512
SLICES = 20
KINDS = ("exec", "httpGet", "tcpSocket", "sleep", "grpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The inside of a container, as far as handlers reach it."""

    address: str
    ports: Mapping[str, int]
    env: Mapping[str, str]
    folder: Path
    rewrite: Callable[[str], str]
    session: aiohttp.ClientSession
    sessions: Sessions


def probe_handler(probe: Json) -> Json:
    """The handler of a probe, without its timing."""
    return {kind: probe[kind] for kind in KINDS if kind in probe}


async def run(handler: Json, target: Target, seconds: float) -> str | None:
    """Do what a probe or hook says; returns what went wrong, None if nothing did.

    The time is counted in slices, each as long as it should have been: while the machine lets the
    world wait, its engines wait as well, and a kubelet of the world would kill them all at once.
    """
    action = asyncio.create_task(_run_handler(handler, target))
    try:
        for _ in range(SLICES):
            if (await asyncio.wait((action,), timeout=seconds / SLICES))[0]:
                return await action
    except (OSError, aiohttp.ClientError) as error:
        return str(error) or type(error).__name__
    finally:
        action.cancel()
        await asyncio.wait((action,))
    return f"no answer within {seconds:g} s"


async def _run_handler(handler: Json, target: Target) -> str | None:
    match handler:
        case {"exec": action}:
            return await _exec(action["command"], target)
        case {"httpGet": action}:
            return await _http_get(action, target)
        case {"tcpSocket": action}:
            return await _connect(action, target)
        case {"sleep": action}:
            await asyncio.sleep(action["seconds"])
            return None
        case _:
            return "the world knows exec, httpGet, tcpSocket and sleep only"


async def _exec(command: list[str], target: Target) -> str | None:
    with tempfile.NamedTemporaryFile() as output:
        process = await start_process(
            [target.rewrite(word) for word in command],
            env=target.env,
            folder=target.folder,
            log=Path(output.name),
            sessions=target.sessions,
        )
        try:
            code = await process.ended()
        finally:
            process.kill()
        text = output.read()[-ANSWER_BYTES:].decode(errors="replace").strip()
    return f"{command[0]} exited with {code}: {text}" if code else None


async def _http_get(action: Json, target: Target) -> str | None:
    scheme = action.get("scheme", "HTTP").lower()
    host = action.get("host") or target.address
    url = f"{scheme}://{host}:{_port(action, target)}{action.get('path', '/')}"
    headers = {header["name"]: header["value"] for header in action.get("httpHeaders", [])}
    # Like the real kubelet: a certificate is not verified, a redirect counts as success.
    async with target.session.get(
        url, headers=headers, ssl=False, allow_redirects=False
    ) as response:
        if 200 <= response.status < 400:
            return None
        return f"HTTP probe failed with statuscode: {response.status}"


async def _connect(action: Json, target: Target) -> str | None:
    host = action.get("host") or target.address
    _, writer = await asyncio.open_connection(host, _port(action, target))
    writer.close()
    return None


def _port(action: Json, target: Target) -> int:
    port = action["port"]
    return target.ports.get(port, 0) if isinstance(port, str) else int(port)
