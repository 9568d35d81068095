"""An input that is changed, and a work folder that is deleted, while an attempt answers rows."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from tessera.batch_runner.answers import parts
from tessera.batch_runner.check import BatchPaths, check
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.run import AttemptRunner, RunOptions
from tessera.batch_runner.sender import SendOptions
from tests.batch_runner.harness import SERVED, Claim, a_row
from tests.batch_runner.simulated_servers import HttpConnection
from world.slots import free_port

_SECONDS = 60
_ANSWER = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":11}}'


class Engine(HttpConnection):
    """Answers rows; at the second row something happens, and it may hang from then on."""

    def __init__(self, happens: Callable[[], object], *, hangs: bool) -> None:
        super().__init__()
        self._happens = happens
        self._hangs = hangs

    @override
    def take(self, head: bytes, body: bytes) -> None:
        if b"echo row-2" in body:
            self._happens()
            if self._hangs:
                return
        self.answer(200, b"" if head.startswith(b"GET") else _ANSWER)


class CurrentFence:
    """Every attempt is the current one."""

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt

    async def current(self) -> int:
        return self._attempt


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    """Create a claim with a checked input of three rows."""
    new_claim = Claim(tmp_path / "claim")
    new_claim.folder.mkdir()
    new_claim.write(map(a_row, (1, 2, 3)))
    paths = BatchPaths(
        input=new_claim.input,
        output=new_claim.output,
        errors=new_claim.errors,
        work=new_claim.work,
    )
    code, report = check(paths, SERVED, WorkHeartbeat(time.monotonic))
    assert code == 0, report
    return new_claim


def _nothing() -> None:
    """Let nothing happen."""


async def _run(
    claim: Claim,
    attempt: int,
    happens: Callable[[], object] | None = _nothing,
    *,
    hangs: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Run an attempt, without an engine if `happens` is None; return its code and its report."""
    port, report = free_port(), claim.folder.parent / "report"
    run_options = RunOptions(
        input=claim.input,
        output=claim.output,
        errors=claim.errors,
        work=claim.work,
        report=report,
        attempt=attempt,
        engine=None if happens is None else f"http://127.0.0.1:{port}",
        send_options=SendOptions(served=SERVED, concurrency=1, retries=0, seed=""),
        host="127.0.0.1",
        port=free_port(),
        input_seconds=0,
        uri="hf://acme/tiny",
        revision=f"commit-{attempt}",
    )
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_SECONDS):
        server = await loop.create_server(
            lambda: Engine(happens or _nothing, hangs=hangs), "127.0.0.1", port
        )
        async with server:
            runner = AttemptRunner(run_options, CurrentFence(attempt), asyncio.Event())
            code = await runner.run()
    return code, json.loads(report.read_bytes())


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(a_row(4)).encode() + b"\n")


def _edit_an_answered_row(path: Path) -> None:
    content = path.read_bytes().replace(b"echo row-1", b"ECHO row-1")
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_append, "it has 628 bytes, and had 471"),
        (_edit_an_answered_row, "other content in 471 bytes"),
    ],
)
async def test_an_edited_input_ends_the_attempt_until_it_is_back(
    claim: Claim, change: Callable[[Path], None], says: str
) -> None:
    checked = claim.input.read_bytes()
    code, report = await _run(claim, 1, lambda: change(claim.input), hangs=True)
    assert (code, report["state"], report["completed"]) == (3, "inputChanged", 1)
    for part in (says, "Put the checked file back (SHA-256 ", "create another BatchInference"):
        assert part in report["message"]
    code, report = await _run(claim, 2, None)
    assert (code, report["state"], report["completed"]) == (3, "inputChanged", 1)
    claim.input.write_bytes(checked)
    code, report = await _run(claim, 3, None)
    assert (code, report["state"]) == (1, "rowsMissing")
    code, report = await _run(claim, 4)
    assert (code, report["completed"], report["inputChanged"]) == (0, 3, False)
    assert [answer["custom_id"] for answer in claim.answers()] == ["row-1", "row-2", "row-3"]
    for number in (1, 4):
        header = json.loads(parts.part_path(claim.work, 0, number).read_bytes().splitlines()[0])
        del header["crc"]
        model = {"model": "hf://acme/tiny", "revision": f"commit-{number}"}
        assert header == {"attempt": number, **model}


def _replace_with_a_longer_file(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(json.dumps(a_row(0)).encode() + b"\n" + path.read_bytes())
    new.replace(path)


def _replace_with_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_replace_with_a_longer_file, _replace_with_a_fifo, Path.unlink])
async def test_answers_of_the_checked_file_are_published_though_another_has_its_name(
    claim: Claim, change: Callable[[Path], object]
) -> None:
    code, report = await _run(claim, 1, lambda: change(claim.input))
    assert (code, report["completed"], report["inputChanged"]) == (0, 3, True), report
    assert [answer["custom_id"] for answer in claim.answers()] == ["row-1", "row-2", "row-3"]


async def test_the_same_content_with_another_time_is_no_change(claim: Claim) -> None:
    code, report = await _run(claim, 1, claim.input.touch)
    assert (code, report["completed"], report["inputChanged"]) == (0, 3, False), report


async def test_a_deleted_work_folder_ends_the_batch_in_the_same_attempt(claim: Claim) -> None:
    code, report = await _run(claim, 1, lambda: shutil.rmtree(claim.work))
    assert (code, report["state"], report["completed"]) == (3, "workMissing", 0), report
    assert "manifest.json is missing: the work folder was deleted" in report["message"]
    code, report = await _run(claim, 2)
    assert (code, report["state"], report["completed"]) == (3, "workMissing", 0), report


async def test_a_volume_that_is_empty_may_come_back(claim: Claim) -> None:
    aside = claim.folder.rename(claim.folder.with_name("aside"))
    claim.folder.mkdir()
    code, report = await _run(claim, 1)
    assert (code, report["state"]) == (1, "failed"), report
    claim.folder.rmdir()
    aside.rename(claim.folder)
    assert (await _run(claim, 1))[0] == 0
