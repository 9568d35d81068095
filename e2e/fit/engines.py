"""The two engines as processes: each computes on a core of its own, away from the client."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fit.model import NAME
from tessera.domain.perf.step import StepTime
from tessera_lab.sim.launch.engine_speed import as_json
from tessera_lab.sim.launch.environment import SPEED

PORT = 18311
URL = f"http://127.0.0.1:{PORT}"
# Arguments of both engines that decide what a step holds.
LIMITS = (
    *("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "256"),
    *("--block-size", "128", "--num-gpu-blocks-override", "256"),
)
_REAL = ("--load-format", "dummy", "--enforce-eager")
_ENVIRONMENT = {
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the scheduler spins while it awaits the worker
}
_START_SECONDS = 240
# The process that schedules and, with one thread, computes.
_COMPUTES = "VLLM::EngineCor"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """One for the client and what hands out requests, one for what computes."""

    client: int
    engine: int


def ticks() -> list[int]:
    """Of all cores together, as /proc/stat counts them."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    return [int(word) for word in first.split()[1:9]]


def busy_seconds() -> float:
    """Of all cores together, by whomever, another machine's turns included."""
    user, nice, system, _, _, interrupts, soft, stolen = ticks()
    return (user + nice + system + interrupts + soft + stolen) / _TICK


def cores() -> Cores:
    """The first and the last that there are; both the same on a machine with one."""
    cores = sorted(os.sched_getaffinity(0))
    return Cores(client=cores[0], engine=cores[-1])


def arguments(folder: Path, kind: str) -> list[str]:
    """The model with its limits, served under a name that says by which engine."""
    named = ("--served-model-name", f"{NAME}-{kind}", "--host", "127.0.0.1", "--port", str(PORT))
    return [str(folder), *named, *LIMITS]


class RunningEngine:
    """An engine that answers, and what others take from it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def others_seconds(self) -> float:
        """Time of all cores that neither the engine nor this process used, nor was idle."""
        own_seconds = sum(_cpu_seconds(pid) for pid in _session_of(self._process.pid))
        return busy_seconds() - own_seconds - time.process_time()


@contextmanager
def real(venv: Path, folder: Path, on: Cores) -> Iterator[RunningEngine]:
    """The real one on the CPU with one thread; its API server shares the client's core."""
    environment = {**os.environ, **_ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": str(on.engine)}
    command = [str(venv / "bin" / "vllm"), "serve", *arguments(folder, "vllm"), *_REAL]
    with _start(command, environment) as process:
        for pid in _session_of(process.pid):
            _pin(pid, on.engine if _name(pid).startswith(_COMPUTES) else on.client)
        yield RunningEngine(process)


@contextmanager
def simulator(folder: Path, speed: StepTime, on: Cores) -> Iterator[RunningEngine]:
    """tessera-sim with a fitted speed."""
    command = [sys.executable, "-m", "tessera_lab.sim.main", *arguments(folder, "tessera-sim")]
    with _start(command, {**os.environ, SPEED: as_json(speed)}) as process:
        _pin(process.pid, on.engine)
        yield RunningEngine(process)


@contextmanager
def _start(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """From the first answer to the end of all its processes."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if not _answers(process):
                log.seek(0)
                output = log.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"{command[0]} did not start: {output}")
            yield process
        finally:
            _end(process)


def _answers(process: subprocess.Popen[bytes]) -> bool:
    """Whether it is healthy before the deadline and before it ends."""
    deadline, pause = time.monotonic() + _START_SECONDS, threading.Event()
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{URL}/health", timeout=5):  # noqa: S310 - our own
                return True
        except (urllib.error.URLError, OSError):
            pause.wait(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """All of its session: a killed server leaves its workers behind."""
    for pid in _session_of(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _session_of(leader: int) -> list[int]:
    """All processes that it started, itself included."""
    pids = [int(place.name) for place in Path("/proc").iterdir() if place.name.isdecimal()]
    return [pid for pid in pids if _session(pid) == leader]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
    except OSError:
        return ""


def _cpu_seconds(pid: int) -> float:
    """Seconds of processor; 0 of one that has ended."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = content.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _pin(pid: int, core: int) -> None:
    """All threads of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
