"""The processes of a gateway, played by shells."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.gateway.processes import GatewayCommands, keep_running

WAIT_SECONDS = 60
BEGIN = 'echo "begin $0" >> "$LOG"; '
WAIT = "while :; do sleep 0.02; done"
NOTES = f'trap \'echo "end $0" >> "$LOG"; exit 0\' TERM; {BEGIN}{WAIT}'
CRASHES_TWICE = f'{BEGIN}test "$(grep -c "begin $0" "$LOG")" -ge 3 || exit 1; {WAIT}'
IGNORES = f"trap '' TERM; {BEGIN}{WAIT}"


class Processes:
    def __init__(
        self, folder: Path, worker: str, workers: int = 1, drain_seconds: float = WAIT_SECONDS
    ) -> None:
        self.log = folder / "log"
        self.log.touch()
        self.stop = asyncio.Event()
        commands = GatewayCommands(
            supervisor=("sh", "-c", NOTES, "supervisor"),
            worker=("sh", "-c", worker, "worker"),
            workers=workers,
        )
        environment = {"LOG": str(self.log), "PATH": "/bin:/usr/bin"}
        self.task = asyncio.create_task(
            keep_running(commands, environment, self.stop, drain_seconds)
        )

    def lines(self) -> list[str]:
        return self.log.read_text(encoding="ascii").split("\n")[:-1]

    async def wait_for(self, line: str, count: int = 1) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.lines().count(line) < count:  # noqa: ASYNC110 - a file says nothing
                await asyncio.sleep(0.02)


async def test_workers_end_before_the_supervisor(tmp_path: Path) -> None:
    processes = Processes(tmp_path, NOTES, workers=2)
    await processes.wait_for("begin worker", 2)
    await processes.wait_for("begin supervisor")
    processes.stop.set()
    await processes.task
    assert processes.lines()[3:] == ["end worker", "end worker", "end supervisor"]


async def test_a_crashed_worker_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processes = Processes(tmp_path, CRASHES_TWICE)
    await processes.wait_for("begin worker", 3)
    processes.stop.set()
    await processes.task
    pauses = [record.getMessage() for record in caplog.records]
    assert pauses == [
        "worker 0 ended with 1, starting it again in 0.1 s",
        "worker 0 ended with 1, starting it again in 0.2 s",
    ]


async def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    processes = Processes(tmp_path, IGNORES, drain_seconds=0.2)
    await processes.wait_for("begin worker")
    await processes.wait_for("begin supervisor")
    processes.stop.set()
    async with asyncio.timeout(WAIT_SECONDS):
        await processes.task
    assert processes.lines()[-1] == "end supervisor"


def test_the_first_process_and_workers_start_without_what_the_supervisor_alone_needs() -> None:
    """Requests are refused until they have started: these packages took half of that time."""
    code = (
        "import sys, tessera.gateway.main, tessera.gateway.run_worker; "
        "print(*{'alembic', 'kubernetes', 'opentelemetry', 'sqlalchemy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
