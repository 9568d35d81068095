"""Whom the operator asks, and under which address."""

import asyncio
from datetime import datetime

import pytest

from tessera.domain.batch.reports import Shown
from tessera.domain.model.reports import Fetched
from tessera.domain.plan import Plan
from tessera.domain.snapshot import Snapshot
from tessera.reconcile.asking import Asker
from tessera.reconcile.observe import Senses
from tests.batch_builders import NIGHT, decided, on_attempt
from tests.builders import NOW


class Engines:
    """Remember under which address they were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ask(self, base: str, model: str) -> str | None:
        raise AssertionError(base, model)

    async def in_flight(self, address: str) -> int | None:
        raise AssertionError(address)

    async def fetched(self, address: str) -> Fetched | None:
        del address
        return None

    async def progress(self, address: str) -> Shown | None:
        self.asked.append(address)
        return Shown(attempt=1, done=5)


def _clock() -> datetime:
    return NOW


@pytest.mark.parametrize(
    ("address", "asked"), [("10.0.0.9", "10.0.0.9:8001"), ("fd00::9", "[fd00::9]:8001")]
)
async def test_the_answer_of_a_runner_is_kept_under_the_uid_of_its_batch(
    address: str, asked: str
) -> None:
    engines, senses, answered = Engines(), Senses(), asyncio.Event()
    asker = Asker(engines, senses, _clock, answered.set)
    running = Plan(batches={NIGHT: decided(on_attempt(pod={"address": address}))})
    asker.start(Snapshot(at=NOW), running)
    async with asyncio.timeout(5):
        await answered.wait()
    assert engines.asked == [asked]
    assert senses.asked["uid-night"].shown.done == 5
    asker.start(Snapshot(at=NOW), Plan())
    assert senses.asked == {}
    await asker.stop()
