"""A claim with a batch, a simulated engine and API server, and runners, each a process."""

import http.client
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tessera.batch_runner.check import BatchPaths, check
from tessera.batch_runner.engine import PROBE_ID
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input.rows import RequestTarget
from tests.batch_runner.simulated_servers import batch_object
from world.slots import free_port

T = TypeVar("T")
DEADLINE_SECONDS = 180
PAUSE_SECONDS = 0.02
UID = "5f0c1a52-uid"
BATCH = "team-a/night"
SERVED = RequestTarget(name="tiny", aliases=("gpt-4o-mini",))
_ROOT = Path(__file__).resolve().parents[2]
_SERVERS = Path(__file__).with_name("simulated_servers.py")
_KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
    "current-context": "here",
    "users": [{"name": "nobody", "user": {}}],
}


def a_row(number: int, **fields: Any) -> dict[str, Any]:
    """Return a valid row whose answer repeats its custom_id."""
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
        """Write row by row: children inherit the peak memory of this process."""
        with self.input.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(f"{row if isinstance(row, str) else json.dumps(row)}\n")

    def answers(self) -> list[Any]:
        return _objects(self.output)

    def failures(self) -> list[Any]:
        return _objects(self.errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerExit:
    """The exit of a runner process."""

    code: int
    report: dict[str, Any]
    log_text: str
    cpu_seconds: float
    rss_mib: float
    """Peak resident memory."""


class RunnerEndedError(Exception):
    """A runner ended before what a test waits for."""


@dataclass(kw_only=True)
class Runner:
    """A process of `tessera-batch`."""

    process: "subprocess.Popen[bytes]"
    report: Path
    log: Path
    port: int

    def progress(self) -> dict[str, Any] | None:
        """Return its progress; None when it does not answer."""
        try:
            status, body = get(self.port, "/progress")
        except OSError:
            return None
        return dict(json.loads(body)) if status == 200 else None

    def wait_for_progress(self, done: float = 0, **fields: object) -> dict[str, Any]:
        """Wait until so many rows are done, or more, and the progress has these fields.

        Raises RunnerEndedError if the process ends before.
        """

        def progress_has_fields() -> dict[str, Any]:
            seen = self.progress()
            if seen is None and not self.runs_for(0):
                raise RunnerEndedError(f"before {done} rows and {fields}: {self.log_text()}")
            assert seen is not None, self.log_text()
            assert seen["done"] >= done, seen
            assert seen.items() >= fields.items()
            return seen

        return eventually(progress_has_fields)

    def runs_for(self, seconds: float) -> bool:
        """Let it run for some time; return whether it still runs."""
        if self.process.returncode is not None:
            return False
        pid_descriptor = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(pid_descriptor, select.POLLIN)
            return not poll.poll(seconds * 1000)
        finally:
            os.close(pid_descriptor)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal, but not through Popen, which would consume the exit code."""
        os.kill(self.process.pid, number)

    def wait_for_exit(self) -> RunnerExit:
        """Wait for the exit; its memory is sampled twenty times a second."""
        peaks = [0.0]
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.runs_for(0.05):
            peaks.append(_peak_mib(self.process.pid))
            assert time.monotonic() < deadline, self.log_text()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        report_bytes = self.report.read_bytes() if self.report.exists() else b""
        return RunnerExit(
            code=self.process.returncode,
            report=json.loads(report_bytes or b"{}"),
            log_text=self.log_text(),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            rss_mib=max(peaks),
        )


def _peak_mib(pid: int) -> float:
    """Return the peak memory so far; `wait` would count the parent's memory too."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(next(sizes, 0)) / 1024


class RunnerHarness:
    """Everything that a runner needs; `close` ends all remaining processes."""

    def __init__(self, folder: Path) -> None:
        self.claim = Claim(folder / "claim")
        self.claim.folder.mkdir(parents=True)
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._runners = 0
        self._object = folder / "object.json"
        self.request_log = folder / "requests.log"
        """Ids of all rows that reached an engine, one line for each request."""
        self.engine_port = free_port()
        self._engine: subprocess.Popen[bytes] | None = None
        self._engine_options: tuple[str, ...] = ()
        self.set_current_attempt(1)
        api_port = free_port()
        self.start_server(api_port, (str(_SERVERS), str(api_port), "--object", str(self._object)))
        self.kubeconfig = folder / "kubeconfig"
        cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{api_port}"}}
        self.kubeconfig.write_text(json.dumps({**_KUBECONFIG, "clusters": [cluster]}))

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def set_current_attempt(self, attempt: int) -> None:
        """Make this attempt the current one in the batch's status."""
        self.set_api_response(batch_object(attempt, UID))

    def set_api_response(self, text: str) -> None:
        """Set the response of the API server; a number is a status code."""
        temporary = self._object.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self._object)

    def start_engine(self, *options: str) -> None:
        """Start an engine; without options one like the last."""
        self._engine_options = options or self._engine_options
        options_with_log = ("--log", str(self.request_log), *self._engine_options)
        arguments = (str(_SERVERS), str(self.engine_port), *options_with_log)
        self._engine = self.start_server(self.engine_port, arguments)

    def kill_engine(self) -> None:
        assert self._engine is not None
        self._engine.kill()
        self._engine.wait()

    def engine_runs(self) -> bool:
        return self._engine is not None and self._engine.poll() is None

    def sent_row_ids(self) -> list[str]:
        """Return the ids of rows that reached an engine; probes are no rows."""
        log = self.request_log.read_text() if self.request_log.exists() else ""
        return [row_id for row_id in log.split() if row_id != PROBE_ID]

    def write_checked_input(self, *rows: Mapping[str, Any]) -> None:
        """Write an input and check it, in this process."""
        claim = self.claim
        claim.write(rows)
        paths = BatchPaths(
            input=claim.input, output=claim.output, errors=claim.errors, work=claim.work
        )
        code, report = check(paths, SERVED, WorkHeartbeat(time.monotonic))
        assert code == 0, report

    def check(self, **limits: int) -> RunnerExit:
        """Check the input in a separate process."""
        return self._command("check", (), limits).wait_for_exit()

    def start(self, attempt: int, *options: str, has_engine: bool = True, **limits: int) -> Runner:
        """Start an attempt; `limits` are those of the process, as in `resource`."""
        fields = {"--attempt": attempt, "--batch": BATCH, "--kubeconfig": self.kubeconfig}
        if has_engine:
            fields["--engine"] = f"http://127.0.0.1:{self.engine_port}"
        chosen = [str(word) for option in fields.items() for word in option]
        defaults = ("--concurrency", "16", "--retries", "2")
        return self._command("run", (*chosen, *defaults, *options), limits)

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
        words += ["--errors", str(claim.errors), "--model", SERVED.name]
        words += ["--report", str(report), "--host", "127.0.0.1"]
        words += ["--port", str(port)]
        words += options
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": "operator"},
                cwd=_ROOT,
            )
        for name, value in limits.items():  # at once, long before it writes anything
            limit = getattr(resource, f"RLIMIT_{name.upper()}")
            resource.prlimit(process.pid, limit, (value, value))
        self._started.append(process)
        return Runner(process=process, report=report, log=log, port=port)

    def start_server(
        self, port: int, words: Iterable[str], **env: str
    ) -> "subprocess.Popen[bytes]":
        """Start a Python process, and return it once its port is open."""
        environment = {**os.environ, "PYTHONPATH": f"{_ROOT / 'operator'}:{_ROOT}", **env}
        log = self._folder / f"server-{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, *words], env=environment, stderr=output)
        self._started.append(process)

        def port_is_open() -> None:
            if process.poll() is not None:
                pytest.fail(f"{words} ended: {log.read_text()}")
            assert _listens(port), f"{words}: {log.read_text()}"

        eventually(port_is_open)
        return process


def eventually(check: Callable[[], T]) -> T:
    """Repeat the asserts of `check` until all of them hold; return what it returns."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        threading.Event().wait(PAUSE_SECONDS)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _objects(path: Path) -> list[Any]:
    def parsed_lines() -> Iterator[Any]:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    return list(parsed_lines())
