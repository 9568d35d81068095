import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tessera.adapters.attempt_fence import KubeFence, kube_fence
from tessera.batch_runner.errors import FencedError
from tessera.batch_runner.run import (
    AttemptRunner,
    FenceTimeout,
    RunOptions,
    refuse_stale,
    wait_until_current,
)
from tessera.batch_runner.sender import SendOptions
from tessera.ports import NotFoundError
from tests.batch_runner.look_alikes import the_object
from tests.batch_runner.running import BATCH, DEADLINE_SECONDS, UID, Stage, a_row, free_port

AT_ONCE = FenceTimeout(seconds=DEADLINE_SECONDS, interval=0)


@pytest.fixture
async def fence(stage: Stage) -> AsyncIterator[KubeFence]:
    namespace, _, name = BATCH.partition("/")
    async with kube_fence(str(stage.kubeconfig), namespace, name, UID) as found:
        yield found


async def test_the_status_says_which_attempt_is_current(stage: Stage, fence: KubeFence) -> None:
    stage.current(3)
    assert await fence.current() == 3
    stage.current(4)
    assert await fence.current() == 4


@pytest.mark.parametrize("status", ["401", "403", "429", "500", "503"])
async def test_without_an_answer_nothing_is_known(
    stage: Stage, fence: KubeFence, status: str
) -> None:
    stage.api_shows(status)
    assert await fence.current() is None


@pytest.mark.parametrize("found", [{}, {"attempt": {}}, {"attempt": {"number": None}}])
async def test_a_status_without_attempts_is_not_known(
    stage: Stage, fence: KubeFence, found: dict[str, object]
) -> None:
    stage.api_shows(json.dumps({"metadata": {"uid": UID}, "status": found}))
    assert await fence.current() is None


@pytest.mark.parametrize("shown", ["404", the_object(1, "another")])
async def test_an_object_that_is_gone_or_another_one_has_no_attempts(
    stage: Stage, fence: KubeFence, shown: str
) -> None:
    stage.api_shows(shown)
    with pytest.raises(NotFoundError, match=r"team-a/night (not found|was replaced)"):
        await fence.current()


class Told:
    """`Fence` that says one thing after the other, and then the last one for ever."""

    def __init__(self, answers: Sequence[int | None]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def current(self) -> int | None:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def options(stage: Stage, **fields: Any) -> RunOptions:
    """Those of the first attempt, in this process."""
    claim = stage.claim
    return RunOptions(
        **{
            "input": claim.input,
            "output": claim.output,
            "errors": claim.errors,
            "work": claim.work,
            "report": claim.folder / "report",
            "attempt": 1,
            "engine": f"http://127.0.0.1:{stage.engine_port}",
            "send_options": SendOptions(model="tiny", concurrency=1, retries=0, seed=""),
            "host": "127.0.0.1",
            "port": free_port(),
            **fields,
        }
    )


async def test_an_attempt_that_is_fenced_off_while_it_works_ends_early(stage: Stage) -> None:
    stage.checked(a_row(1, prompt="please hang"))
    stage.start_engine()
    given = options(stage, fence_seconds=0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await AttemptRunner(given, Told([1] * 100 + [2]), asyncio.Event()).run() == 4
    assert json.loads(given.report.read_bytes())["state"] == "fenced"


async def test_a_fence_that_cannot_be_reached_is_noticed_before_a_row_is_paid(
    stage: Stage,
) -> None:
    stage.checked(a_row(1))
    stage.start_engine()
    given = options(stage, start_timeout=FenceTimeout(seconds=0.1, interval=0.01))
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await AttemptRunner(given, Told([None]), asyncio.Event()).run() == 1
    told = json.loads(given.report.read_bytes())
    for part in ("egress", "the API server", "RoleBinding/tessera-batch"):
        assert part in told["message"]
    assert (told["state"], stage.sent()) == ("failed", [])


async def test_a_fence_that_goes_away_is_waited_for_and_every_row_is_kept(stage: Stage) -> None:
    stage.checked(a_row(1))
    stage.start_engine()
    given = options(stage, publish_timeout=FenceTimeout(seconds=0.1, interval=0.01))
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await AttemptRunner(given, Told([1, None]), asyncio.Event()).run() == 1
        told = json.loads(given.report.read_bytes())
        assert (told["completed"], given.output.exists()) == (1, False)
        assert "all rows are retained" in told["message"]
        assert await AttemptRunner(given, Told([1]), asyncio.Event()).run() == 0
    assert (len(stage.sent()), len(stage.claim.answers())) == (1, 1)


class Gone:
    """`Fence` of a deleted object."""

    async def current(self) -> int | None:
        raise NotFoundError("BatchInference a/b is gone")


async def test_publication_waits_until_the_attempt_is_known_to_be_the_current_one() -> None:
    told = Told([None, None, 1, 2])
    async with asyncio.timeout(DEADLINE_SECONDS):
        await wait_until_current(told, 2, AT_ONCE)
    assert told.asked == 4


async def test_a_newer_attempt_fences_off() -> None:
    with pytest.raises(FencedError, match="attempt 3 is current, so attempt 2 publishes nothing"):
        await wait_until_current(Told([None, 3]), 2, AT_ONCE)


async def test_a_deleted_batch_fences_off() -> None:
    with pytest.raises(FencedError, match="is gone; nothing is published"):
        await wait_until_current(Gone(), 1, AT_ONCE)


@pytest.mark.parametrize(("answer", "current"), [(None, False), (1, False), (2, True)])
async def test_an_attempt_may_work_while_it_is_not_known_to_be_stale(
    answer: int | None, current: bool
) -> None:
    assert await refuse_stale(Told([answer]), 2) is current
