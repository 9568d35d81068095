"""Hostile engines and clients on every path that a request can take."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tessera.gateway.bodies.memory import Holding
from tessera.gateway.queue.places import Places
from tessera.gateway.reserve.limits import Reservations
from tests.gateway.harness import DONE, END
from tests.hostile.answers import (
    COUNTS,
    LARGE_STREAMS,
    LARGE_WHOLE,
    SILENT_COUNTS,
    SILENT_STREAMS,
    SILENT_WHOLE,
    STREAMS,
    WHOLE,
)
from tests.hostile.clients import CLIENTS, leavers
from tests.hostile.paths import MAX_OUTPUT_TOKENS, PATHS, PROMPT_TOKENS, Attack, Stage, a_stage
from tests.hostile.scenes import play
from tests.hostile.score import SCORE
from world.keys import Authority

pytestmark = pytest.mark.anyio
RESUMED = [name for name, path in PATHS.items() if path.resumes]
# Shorter than any pause of a busy machine would be a cause of its own.
IDLE_SECONDS = 2.0
ALL_AT_ONCE = [name for name in PATHS if name not in RESUMED]


@asynccontextmanager
async def stage_of(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture, **options: Any
) -> AsyncIterator[Stage]:
    path = PATHS[name]
    if path.tls:
        authority = Authority(folder / "keys")
        pair = authority.server("gateway", "127.0.0.1")
        shutil.copy(pair.key, folder / "tls.key")
        shutil.copy(pair.certificate, folder / "tls.crt")
        trusted = ssl.create_default_context(cafile=str(authority.own.certificate))
        options |= {"tls_directory": folder, "trusted": trusted}
    async with a_stage(path, caplog.records, **options) as stage:
        yield stage
        await assert_accounts(stage)


async def play_all(stage: Stage, attacks: Mapping[str, Attack], *, stream: bool = True) -> None:
    """Play attacks on one path; count them, and what should not be."""
    broken = {}
    for name, attack in attacks.items():
        problems = await play(stage, attack, stream=stream)
        SCORE.add(bool(problems))
        if problems:
            broken[name] = problems
    assert not broken, "\n".join(f"{name}: {problems}" for name, problems in broken.items())


async def assert_accounts(stage: Stage) -> None:
    """The bystander has all of its stream, and limits lost what is recorded."""
    assert await stage.hear_the_end() == END + DONE
    assert abs(stage.unaccounted_tokens()) < MAX_OUTPUT_TOKENS // 2
    (record,) = [each for each in stage.gateway.records if each.tenant == "team-b"]
    assert (record.status, record.input_tokens, record.output_tokens) == (200, PROMPT_TOKENS, 3)
    assert stage.gateway.held_bytes == 0


@pytest.mark.parametrize("path", PATHS)
async def test_streams_of_hostile_engines(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage_of(path, tmp_path, caplog) as stage:
        await play_all(stage, STREAMS)


@pytest.mark.parametrize("path", ["direct", "resumed"])
async def test_large_streams_of_hostile_engines(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage_of(path, tmp_path, caplog) as stage:
        await play_all(stage, LARGE_STREAMS)


@pytest.mark.parametrize("path", ALL_AT_ONCE)
async def test_whole_answers_of_hostile_engines(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage_of(path, tmp_path, caplog) as stage:
        attacks = {**WHOLE, **LARGE_WHOLE} if path == "direct" else WHOLE
        await play_all(stage, attacks, stream=False)


@pytest.mark.parametrize("path", RESUMED)
async def test_hostile_counts_of_tokens(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage_of(path, tmp_path, caplog) as stage:
        await play_all(stage, COUNTS)


async def test_engines_that_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On all paths at once, since nothing but time passes."""

    async def wait(path: str) -> None:
        async with stage_of(path, tmp_path, caplog, idle_seconds=IDLE_SECONDS) as stage:
            await play_all(stage, SILENT_STREAMS)
            if path in RESUMED:
                await play_all(stage, SILENT_COUNTS)
            else:
                await play_all(stage, SILENT_WHOLE, stream=False)

    await asyncio.gather(*map(wait, PATHS))


@pytest.mark.parametrize("path", PATHS)
async def test_hostile_clients(path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with stage_of(path, tmp_path, caplog) as stage:
        await play_all(stage, {**CLIENTS, **leavers(PATHS[path].points)})


FAULTS: Mapping[str, tuple[type, str]] = {
    "a place stays": (Places, "leave"),
    "bytes stay": (Holding, "close"),
    "a limit is not settled": (Reservations, "settle"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_gateway_that_leaks_is_seen(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plant a fault by which something of each request stays."""
    owner, name = FAULTS[fault]

    async def play_with_it() -> None:
        async with stage_of("direct", tmp_path, caplog) as stage:
            monkeypatch.setattr(owner, name, lambda *_, **__: None)
            assert not await play(stage, STREAMS["cut in an event"], patience=0.2)

    with pytest.raises(AssertionError):
        await play_with_it()
