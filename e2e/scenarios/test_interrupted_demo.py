"""A demo that is ended at any moment says so, and leaves nothing behind."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from demo.cluster import ROOT
from world.testing import eventually

pytestmark = pytest.mark.world
_SECONDS = 300
_SENTENCE = "demo: interrupted; nothing of it is left, and make demo starts it again"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a demo with a cache of its own, which has the programs of the real one."""
    real = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera" / "bin"
    (tmp_path / "tessera").mkdir()
    (tmp_path / "tessera" / "bin").symlink_to(real)
    sources = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "e2e", "tools", "."))
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": sources}


def _processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes with the folder in command line or environment."""
    lines = []
    for process in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            line, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if str(folder).encode() in line + environment:
            lines.append(line.replace(b"\0", b" ").decode())
    return lines


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGINT, "", id="at once"),
        pytest.param(signal.SIGTERM, "installing the chart", id="as a command runs"),
        pytest.param(
            signal.SIGINT, "waiting for", id="as its world starts", marks=pytest.mark.full
        ),
        pytest.param(signal.SIGTERM, "Watch:", id="in a scene", marks=pytest.mark.full),
    ],
)
async def test_an_interrupted_demo_leaves_nothing_behind(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals, moment: str
) -> None:
    report = tmp_path / "report.html"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo", "--report", str(report)),
        env=environment,
        cwd=tmp_path,
        stdout=PIPE,
        stderr=STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_SECONDS):
            if moment:
                while moment not in (await process.stdout.readline()).decode():
                    assert not process.stdout.at_eof()
            else:
                await _handler_is_set(process.pid)
            # The second is of a user who is in a hurry.
            process.send_signal(number)
            process.send_signal(number)
            output = (await process.stdout.read()).decode()
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    assert (code, output.splitlines()[-1]) == (130, _SENTENCE)
    assert "Traceback" not in output
    assert not report.exists()
    assert _processes_of(tmp_path) == []
    worlds = tmp_path / "tessera" / "worlds"
    assert not worlds.exists() or [path for path in worlds.iterdir() if path.is_dir()] == []


async def _handler_is_set(pid: int) -> None:
    """Wait until the interpreter runs the demo, whose imports take a second."""

    async def catches_sigterm() -> None:
        status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)
        caught = int(next(line for line in status.splitlines() if "SigCgt" in line).split()[1], 16)
        assert caught & 1 << (signal.SIGTERM - 1)

    await eventually(catches_sigterm)
