"""Engines as processes: the real one and the simulator, started by the same arguments."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conformance.configurations import KEY, Configuration
from tests.conformance.confined import Confinement
from tests.lab.sim.running import SHAPE
from world.slots import free_port
from world.testing import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
# Two real engines on a busy machine take minutes.
START_SECONDS = 900
ANSWER_SECONDS = 240
# No warm-up, a small cache, nothing from outside.
_CPU = {
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_SIMULATOR_ENV = {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_START_SECONDS": "0"}


class SentRequests:
    """Counts the requests that have left the client whole, answered or not."""

    def __init__(self) -> None:
        self.count = 0
        self._news = asyncio.Event()

    async def watch(self, request: httpx.Request) -> None:
        """Trace a request; a hook of the client."""
        request.extensions["trace"] = self._trace

    async def wait_until_sent(self, count: int) -> None:
        """Wait until `count` requests are sent."""
        while self.count < count:
            self._news.clear()
            await self._news.wait()

    async def _trace(self, event: str, _info: object) -> None:
        if event == "http11.send_request_body.complete":
            self.count += 1
            self._news.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProcess:
    """A running engine and a client for it."""

    url: str
    http: httpx.AsyncClient
    sent: SentRequests
    process: "subprocess.Popen[bytes]"
    log: Path

    def stop(self) -> None:
        """Send SIGSTOP to all its processes: requests wait in their sockets."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in members(self.process.pid):
            os.kill(process, number)

    def terminate(self) -> None:
        """Send SIGTERM to the API server alone, as a kubelet does."""
        self.process.terminate()

    async def wait_for_exit(self, seconds: float) -> int:
        """Wait for its exit, and return the exit code."""
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(self.process.wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The command of an engine, without the arguments."""

    words: tuple[str, ...]
    env: Mapping[str, str]
    confined: Confinement | None = None


def simulator() -> Program:
    env = {"PYTHONPATH": str(ROOT / "operator"), **_SIMULATOR_ENV}
    return Program(words=(sys.executable, "-m", "tessera_lab.sim.main"), env=env)


def real(venv: Path, confined: Confinement | None = None, readable: Sequence[Path] = ()) -> Program:
    """Return vLLM in its environment; a confined one sees only the readable folders."""
    path = f"{venv / 'bin'}:{os.environ['PATH']}"
    words = (str(venv / "bin" / "vllm"), "serve")
    env = {"PATH": path, **_CPU}
    if confined is None:
        return Program(words=words, env=env)
    around = confined.words(readable)
    return Program(words=(*around, *words), env={**env, **confined.env}, confined=confined)


@asynccontextmanager
async def running(
    program: Program, model: str, configuration: Configuration, folder: Path
) -> AsyncIterator[EngineProcess]:
    """Run an engine from its open port on, and kill its whole session afterwards."""
    port = free_port()
    argv = [*program.words, model, *configuration.argv, "--host", "127.0.0.1", "--port", str(port)]
    log = folder / f"{configuration.name}-{port}.log"
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = _start(argv, {**inherited, **program.env, **configuration.env}, log)
    url = f"http://127.0.0.1:{port}"
    # One connection a request, as probes do: an idle connection may be closed at the wrong moment.
    limits = httpx.Limits(max_keepalive_connections=0)
    try:
        sent = SentRequests()
        async with httpx.AsyncClient(
            base_url=url,
            timeout=ANSWER_SECONDS,
            limits=limits,
            event_hooks={"request": [sent.watch]},
        ) as http:
            engine = EngineProcess(url=url, http=http, sent=sent, process=process, log=log)
            await _open(engine)
            yield engine
    finally:
        await asyncio.to_thread(_end, process)


def _start(argv: Sequence[str], env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            argv, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def key(configuration: Configuration) -> dict[str, str]:
    """Return the headers of the configuration's requests."""
    guarded = any(word.startswith("--api-key") for word in configuration.argv)
    return {"Authorization": f"Bearer {KEY}"} if guarded else {}


async def _open(engine: EngineProcess) -> None:
    """Wait until it answers; fail with the end of its log if its process ends."""

    async def is_healthy() -> None:
        if engine.process.poll() is not None:
            raise RuntimeError(f"the engine ended: {_tail(engine.log)}")
        try:
            status = (await engine.http.get("/health")).status_code
        except httpx.TransportError as error:
            raise AssertionError(_tail(engine.log)) from error
        assert status == 200

    await eventually(is_healthy, within=START_SECONDS)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill all processes of the session: engine processes outlive their API server."""
    for number in members(process.pid):
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def members(session: int) -> list[int]:
    """Return all processes of a session."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        if entry.name.isdecimal() and int(fields.rpartition(")")[2].split()[3]) == session:
            pids.append(int(entry.name))
    return pids
