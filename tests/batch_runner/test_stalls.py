"""Attempts whose engine or volume hangs: they end, and slow ones do not."""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from typing_extensions import override

from tessera.batch_runner import main
from tessera.batch_runner.answers.parts import Journal
from tessera.batch_runner.errors import TransientError
from tessera.batch_runner.progress import Progress, serve, status_app
from tessera.batch_runner.run import AttemptRunner
from tests.batch_runner.harness import DEADLINE_SECONDS, RunnerHarness, a_row
from tests.batch_runner.test_fence import ScriptedFence, options
from world.slots import free_port

COUNT = 'vllm:iteration_tokens_total_count{{engine="0"}} {}\n'
STALL_SECONDS = 3


@asynccontextmanager
async def _silent_engine(metrics: Callable[[], str]) -> AsyncIterator[str]:
    """Serve an engine that is healthy and answers no row."""
    ended = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            await ended.wait()
        return web.Response(text=metrics() if request.path == "/metrics" else "")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    port = free_port()
    async with serve(app, "127.0.0.1", port):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            ended.set()


async def test_an_engine_without_a_step_ends_the_attempt(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    async with _silent_engine(lambda: COUNT.format("5.0")) as engine:
        run_options = options(harness, engine=engine, stall_seconds=STALL_SECONDS)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await AttemptRunner(run_options, ScriptedFence([1]), asyncio.Event()).run() == 1
    report = json.loads(run_options.report.read_bytes())
    assert (
        "no row and no byte moved for 3 s while running, with 1 row at the engine"
        in (report["message"])
    )


@pytest.mark.parametrize("counted", [True, False])
async def test_a_long_answer_of_an_engine_that_works_or_counts_no_steps_is_waited_for(
    harness: RunnerHarness, *, counted: bool
) -> None:
    harness.write_checked_input(a_row(1))
    numbers = itertools.count()
    stop = asyncio.Event()
    async with _silent_engine(lambda: COUNT.format(next(numbers)) if counted else "") as engine:
        run_options = options(harness, engine=engine, stall_seconds=STALL_SECONDS)
        run = asyncio.create_task(AttemptRunner(run_options, ScriptedFence([1]), stop).run())
        await asyncio.wait({run}, timeout=2 * STALL_SECONDS)
        assert not run.done()
        stop.set()
        assert await run == 0
    assert json.loads(run_options.report.read_bytes())["state"] == "stopped"


class _HangingJournal(Journal):
    @override
    async def sync(self) -> None:
        await asyncio.Event().wait()


async def test_a_volume_that_takes_no_row_ends_the_attempt(harness: RunnerHarness) -> None:
    journal = _HangingJournal(harness.claim.work, 1, stall_seconds=0.01)
    journal._due.set()  # otherwise the first flush is 5 s away
    with pytest.raises(TransientError, match="hangs: it took no row"):
        await journal.run()


async def test_a_check_answers_while_its_volume_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, thawed, port = threading.Event(), threading.Event(), free_port()

    def check(*_: object) -> tuple[int, dict[str, str]]:
        frozen.set()
        thawed.wait()
        return 1, {"message": "thawed"}

    monkeypatch.setattr(main, "check", check)
    names = ("input", "output", "work", "errors", "report")
    paths = [f"--{name}={tmp_path / name}" for name in names]
    words = ["check", *paths, "--model=m", "--host=127.0.0.1", f"--port={port}"]
    checked = asyncio.create_task(main._serve_check(main._parser().parse_args(words)))
    try:
        await asyncio.to_thread(frozen.wait, DEADLINE_SECONDS)
        async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE_SECONDS):
            progress = await session.get(f"http://127.0.0.1:{port}/progress")
            assert (await progress.json())["attempt"] == 0
    finally:
        thawed.set()
    assert await checked == 1


async def test_healthz_fails_once_nothing_moves_but_while_results_are_published() -> None:
    moment = [0.0]
    progress = Progress(1, stall_seconds=900, clock=lambda: moment[0])
    port = free_port()

    async def healthy() -> bool:
        async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
            return response.status == 200

    async with serve(status_app(progress), "127.0.0.1", port), aiohttp.ClientSession() as session:
        moment[0] = 899
        assert await healthy()
        moment[0] = 900
        assert not await healthy()
        assert progress.as_dict()["idleSeconds"] == 900
        progress.state = "publishing"
        assert await healthy()
        progress.state = "running"
        progress.record_movement()
        assert await healthy()
