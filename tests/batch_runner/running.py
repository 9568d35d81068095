"""A claim with a batch, look-alikes of engine and API server, and runners, each a process."""

import http.client
import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.batch_runner.check import BatchPaths, check
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tests.batch_runner.look_alikes import the_object

DEADLINE_SECONDS = 60
UID = "5f0c1a52-uid"
BATCH = "team-a/night"
_ROOT = Path(__file__).resolve().parents[2]
_LOOK_ALIKES = Path(__file__).with_name("look_alikes.py")
_KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
    "current-context": "here",
    "users": [{"name": "nobody", "user": {}}],
}


def a_row(number: int, **fields: Any) -> dict[str, Any]:
    """A valid row whose answer repeats its custom_id."""
    prompt = fields.pop("prompt", f"echo row-{number}")
    return {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": prompt}], "max_tokens": 20},
        **fields,
    }


@dataclass(frozen=True, slots=True)
class Claim:
    """The volume of a batch."""

    folder: Path

    @property
    def input(self) -> Path:
        return self.folder / "in.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def errors(self) -> Path:
        return self.folder / "errors.jsonl"

    @property
    def work(self) -> Path:
        return self.folder / ".tessera" / UID

    def write(self, rows: Iterable[Mapping[str, Any] | str]) -> None:
        """Row by row: what this process ever had, its children seem to have had as well."""
        with self.input.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(f"{row if isinstance(row, str) else json.dumps(row)}\n")

    def answers(self) -> list[Any]:
        return _objects(self.output)

    def failures(self) -> list[Any]:
        return _objects(self.errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended."""

    code: int
    report: dict[str, Any]
    said: str
    cpu_seconds: float
    rss_mib: float
    """The most that it ever had."""


@dataclass(kw_only=True)
class Runner:
    """A process of `tessera-batch`."""

    process: "subprocess.Popen[bytes]"
    report: Path
    log: Path
    port: int

    def progress(self) -> dict[str, Any] | None:
        """What it says of itself; None when it does not answer."""
        try:
            status, body = get(self.port, "/progress")
        except OSError:
            return None
        return dict(json.loads(body)) if status == 200 else None

    def until(self, reached: Callable[[dict[str, Any]], bool], wanted: str) -> dict[str, Any]:
        """Wait until its progress is like this, or it has ended."""
        seen: list[dict[str, Any]] = [{}]

        def is_reached() -> bool:
            seen.append(self.progress() or seen[-1])
            return (bool(seen[-1]) and reached(seen[-1])) or self.runs_for(0.005) is False

        eventually(is_reached, lambda: f"{wanted}; last seen {seen[-1]}; {self.said()}")
        return seen[-1]

    def runs_for(self, seconds: float) -> bool:
        """Let it run; does it still?"""
        if self.process.returncode is not None:
            return False
        watched = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            return not poll.poll(seconds * 1000)
        finally:
            os.close(watched)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Not through Popen, which would take the exit code away."""
        os.kill(self.process.pid, number)

    def ended(self) -> Ended:
        """Wait for the end; its memory is looked at twenty times a second."""
        peaks = [0.0]

        def is_over() -> bool:
            peaks.append(_most_mib(self.process.pid))
            return not self.runs_for(0.05)

        eventually(is_over, lambda: f"the end of the runner; {self.said()}")
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        told = self.report.read_bytes() if self.report.exists() else b""
        return Ended(
            code=self.process.returncode,
            report=json.loads(told or b"{}"),
            said=self.said(),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            rss_mib=max(peaks),
        )


def _most_mib(pid: int) -> float:
    """The most that the program had until now; `wait` would count its starter's memory too."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    told = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(next(told, 0)) / 1024


class Stage:
    """Everything around a runner; `close` ends all that is left."""

    def __init__(self, folder: Path) -> None:
        self.claim = Claim(folder / "claim")
        self.claim.folder.mkdir(parents=True)
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._runners = 0
        self._object = folder / "object.json"
        self.sendings = folder / "sendings.log"
        """Ids of all rows that reached an engine, one line for each time."""
        self.engine_port = free_port()
        self._engine: subprocess.Popen[bytes] | None = None
        self._engine_options: tuple[str, ...] = ()
        self.current(1)
        api_port = free_port()
        self.listening(api_port, (str(_LOOK_ALIKES), str(api_port), "--object", str(self._object)))
        self.kubeconfig = folder / "kubeconfig"
        cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{api_port}"}}
        self.kubeconfig.write_text(json.dumps({**_KUBECONFIG, "clusters": [cluster]}))

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def current(self, attempt: int) -> None:
        """The object says that this attempt is the current one."""
        self.api_shows(the_object(attempt, UID))

    def api_shows(self, text: str) -> None:
        """What the API server answers; a number is a status code."""
        beside = self._object.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self._object)

    def start_engine(self, *options: str) -> None:
        """An engine; without options one like the last."""
        self._engine_options = options or self._engine_options
        told = ("--log", str(self.sendings), *self._engine_options)
        words = (str(_LOOK_ALIKES), str(self.engine_port), *told)
        self._engine = self.listening(self.engine_port, words)

    def kill_engine(self) -> None:
        assert self._engine is not None
        self._engine.kill()
        self._engine.wait()

    def engine_runs(self) -> bool:
        return self._engine is not None and self._engine.poll() is None

    def sent(self) -> list[str]:
        """Ids of rows that reached an engine."""
        return self.sendings.read_text().split() if self.sendings.exists() else []

    def checked(self, *rows: Mapping[str, Any]) -> None:
        """Write an input and check it, in this process."""
        claim = self.claim
        claim.write(rows)
        places = BatchPaths(input=claim.input, output=claim.output, work=claim.work)
        code, told = check(places, WorkHeartbeat(time.monotonic))
        assert code == 0, told

    def check(self, **limits: int) -> Ended:
        """Check the input in a process of its own."""
        return self._command("check", (), limits).ended()

    def start(self, attempt: int, *options: str, **limits: int) -> Runner:
        """Begin an attempt; `limits` are of the process, as in `resource`."""
        told = {
            "--errors": self.claim.errors,
            "--attempt": attempt,
            "--batch": BATCH,
            "--engine": f"http://127.0.0.1:{self.engine_port}",
            "--model": "tiny",
            "--kubeconfig": self.kubeconfig,
            "--host": "127.0.0.1",
        }
        chosen = [str(word) for option in told.items() for word in option]
        given = ("--concurrency", "16", "--retries", "2")
        return self._command("run", (*chosen, *given, *options), limits)

    def _command(self, command: str, options: Iterable[str], limits: Mapping[str, int]) -> Runner:
        self._runners += 1
        report = self._folder / f"report-{self._runners}.json"
        log, port = self._folder / f"runner-{self._runners}.log", free_port()
        claim = self.claim
        words = [
            sys.executable,
            "-m",
            "tessera.batch_runner.main",
            command,
            "--input",
            str(claim.input),
        ]
        words += ["--output", str(claim.output), "--work", str(claim.work)]
        words += ["--report", str(report)]
        words += ["--port", str(port)] if command == "run" else []
        words += options
        with log.open("wb") as said:
            process = subprocess.Popen(
                words,
                stdout=said,
                stderr=said,
                env={**os.environ, "PYTHONPATH": "operator"},
                cwd=_ROOT,
            )
        for name, value in limits.items():  # at once, long before it writes anything
            limit = getattr(resource, f"RLIMIT_{name.upper()}")
            resource.prlimit(process.pid, limit, (value, value))
        self._started.append(process)
        return Runner(process=process, report=report, log=log, port=port)

    def listening(self, port: int, words: Iterable[str], **env: str) -> "subprocess.Popen[bytes]":
        """A process of Python, once its port is open."""
        given = {**os.environ, "PYTHONPATH": f"{_ROOT / 'operator'}:{_ROOT}", **env}
        process = subprocess.Popen([sys.executable, *words], env=given, stderr=subprocess.DEVNULL)
        self._started.append(process)
        eventually(lambda: _listens(port), lambda: f"a port of {words}")
        return process


def eventually(reached: Callable[[], bool], wanted: Callable[[], str]) -> None:
    """Look again and again, under a deadline; `wanted` says what did not come."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {wanted()}")


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _objects(path: Path) -> list[Any]:
    def found() -> Iterator[Any]:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    return list(found())
