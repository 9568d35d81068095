import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tessera.adapters.kube.attempt_fence import KubeFence, kube_fence
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
from tests.batch_runner.harness import (
    BATCH,
    DEADLINE_SECONDS,
    SERVED,
    UID,
    RunnerHarness,
    a_row,
)
from tests.batch_runner.simulated_servers import batch_object
from world.slots import free_port

AT_ONCE = FenceTimeout(seconds=DEADLINE_SECONDS, interval=0)


@pytest.fixture
async def fence(harness: RunnerHarness) -> AsyncIterator[KubeFence]:
    namespace, _, name = BATCH.partition("/")
    async with kube_fence(str(harness.kubeconfig), namespace, name, UID) as client:
        yield client


async def test_the_status_says_which_attempt_is_current(
    harness: RunnerHarness, fence: KubeFence
) -> None:
    harness.set_current_attempt(3)
    assert await fence.current() == 3
    harness.set_current_attempt(4)
    assert await fence.current() == 4


@pytest.mark.parametrize("status", ["401", "403", "429", "500", "503"])
async def test_without_an_answer_nothing_is_known(
    harness: RunnerHarness, fence: KubeFence, status: str
) -> None:
    harness.set_api_response(status)
    assert await fence.current() is None


@pytest.mark.parametrize("attempts", [{}, {"attempt": {}}, {"attempt": {"number": None}}])
async def test_a_status_without_attempts_is_not_known(
    harness: RunnerHarness, fence: KubeFence, attempts: dict[str, object]
) -> None:
    harness.set_api_response(json.dumps({"metadata": {"uid": UID}, "status": attempts}))
    assert await fence.current() is None


@pytest.mark.parametrize("shown", ["404", batch_object(1, "another")])
async def test_a_deleted_or_replaced_object_has_no_attempts(
    harness: RunnerHarness, fence: KubeFence, shown: str
) -> None:
    harness.set_api_response(shown)
    with pytest.raises(NotFoundError, match=r"team-a/night (not found|was replaced)"):
        await fence.current()


class ScriptedFence:
    """A `Fence` that gives these answers in order, and then the last one for ever."""

    def __init__(self, answers: Sequence[int | None]) -> None:
        self._answers = list(answers)
        self.calls = 0

    async def current(self) -> int | None:
        self.calls += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def options(harness: RunnerHarness, **fields: Any) -> RunOptions:
    """Build the options of the first attempt, in this process."""
    claim = harness.claim
    return RunOptions(
        **{
            "input": claim.input,
            "output": claim.output,
            "errors": claim.errors,
            "work": claim.work,
            "report": claim.folder / "report",
            "attempt": 1,
            "engine": f"http://127.0.0.1:{harness.engine_port}",
            "send_options": SendOptions(served=SERVED, concurrency=1, retries=0, seed=""),
            "host": "127.0.0.1",
            "port": free_port(),
            **fields,
        }
    )


async def test_an_attempt_that_is_fenced_off_while_it_works_ends_early(
    harness: RunnerHarness,
) -> None:
    harness.write_checked_input(a_row(1, prompt="please hang"))
    harness.start_engine()
    run_options = options(harness, fence_seconds=0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (
            await AttemptRunner(run_options, ScriptedFence([1] * 100 + [2]), asyncio.Event()).run()
            == 4
        )
    assert json.loads(run_options.report.read_bytes())["state"] == "fenced"


async def test_a_fence_that_cannot_be_reached_is_noticed_before_a_row_is_paid(
    harness: RunnerHarness,
) -> None:
    harness.write_checked_input(a_row(1))
    harness.start_engine()
    run_options = options(harness, fence_timeout=FenceTimeout(seconds=0.1, interval=0.01))
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await AttemptRunner(run_options, ScriptedFence([None]), asyncio.Event()).run() == 1
    report = json.loads(run_options.report.read_bytes())
    for part in ("egress", "the API server", "RoleBinding/tessera-batch"):
        assert part in report["message"]
    assert (report["state"], harness.sent_row_ids()) == ("failed", [])


async def test_an_unreachable_fence_is_waited_for_and_every_row_is_retained(
    harness: RunnerHarness,
) -> None:
    harness.write_checked_input(a_row(1))
    harness.start_engine()
    run_options = options(harness, fence_timeout=FenceTimeout(seconds=0.1, interval=0.01))
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (
            await AttemptRunner(run_options, ScriptedFence([1, None]), asyncio.Event()).run() == 1
        )
        report = json.loads(run_options.report.read_bytes())
        assert (report["completed"], run_options.output.exists()) == (1, False)
        assert "all rows are retained" in report["message"]
        assert await AttemptRunner(run_options, ScriptedFence([1]), asyncio.Event()).run() == 0
    assert (len(harness.sent_row_ids()), len(harness.claim.answers())) == (1, 1)


class DeletedBatchFence:
    """The `Fence` of a deleted object."""

    async def current(self) -> int | None:
        raise NotFoundError("BatchInference a/b is gone")


async def test_publication_waits_until_the_attempt_is_known_to_be_the_current_one() -> None:
    fence = ScriptedFence([None, None, 1, 2])
    async with asyncio.timeout(DEADLINE_SECONDS):
        await wait_until_current(fence, 2, AT_ONCE)
    assert fence.calls == 4


async def test_a_newer_attempt_fences_off() -> None:
    with pytest.raises(FencedError, match="attempt 3 is current, so attempt 2 publishes nothing"):
        await wait_until_current(ScriptedFence([None, 3]), 2, AT_ONCE)


async def test_a_deleted_batch_fences_off() -> None:
    with pytest.raises(FencedError, match="is gone; nothing is published"):
        await wait_until_current(DeletedBatchFence(), 1, AT_ONCE)


@pytest.mark.parametrize(("answer", "current"), [(None, False), (1, False), (2, True)])
async def test_an_attempt_may_work_while_it_is_not_known_to_be_stale(
    answer: int | None, current: bool
) -> None:
    assert await refuse_stale(ScriptedFence([answer]), 2) is current
