"""The operator's process ends at each of its write requests; the end state is the same.

The method is that of Sieve: every state in which a controller can leave its objects half done is
visited, and a new process has to reach the same end state from it. With `--full` the process ends
at each request twice, when it is sent and when it is answered; otherwise at each sixth request,
alternating between the two.
"""

import itertools
from collections import Counter
from typing import Any

import pytest

from tessera.controller.main import LEADERSHIP_LOST
from tests.faults.namespaces import TenantNamespace
from tests.faults.operators import (
    ANSWERED,
    CRASH_EXIT_CODE,
    SENT,
    OperatorOptions,
    RestartingOperator,
    running_operator,
)
from tests.faults.user_actions import run_user_actions
from world import World
from world.api import Api
from world.object_comparison import differences

# The garbage collector of a new control plane looks for new kinds every half minute.
WARM_SECONDS = 120
# Without `--full` the process ends at each so many requests only.
SAMPLED_EACH = 6


def moments(at: int, *, full: bool) -> tuple[int, ...]:
    """Return the moments at which the process ends at this request."""
    if full:
        return (SENT, ANSWERED)
    sample, skipped = divmod(at, SAMPLED_EACH)
    return () if skipped else (SENT if sample % 2 else ANSWERED,)


async def end_state_with_crash(
    operator: RestartingOperator, api: Api, at: int, moment: int
) -> dict[str, Any]:
    """Return the end state of the actions when the process ends at that request."""
    namespace = TenantNamespace(api, f"{'sent' if moment == SENT else 'answered'}-{at}")
    operator.crash_trigger.arm(namespace.name, at, moment)
    end_state = await run_user_actions(namespace)
    await namespace.delete()
    return end_state


async def test_wherever_the_process_ends_between_two_writes_the_end_is_the_same(
    world: World, api: Api, pytestconfig: pytest.Config
) -> None:
    full = pytestconfig.getoption("--full")
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        await run_user_actions(TenantNamespace(api, "warm"), WARM_SECONDS)
        operator.crash_trigger.arm("clean")
        clean = await run_user_actions(TenantNamespace(api, "clean"))
        writes = operator.crash_trigger.requests_seen

        wrong: list[str] = []
        expected, reached = Counter[int](), Counter[int]()
        for at in itertools.count(1):
            before = operator.exit_codes.count(CRASH_EXIT_CODE)
            for moment in moments(at, full=full):
                exits_before = operator.exit_codes.count(CRASH_EXIT_CODE)
                end_state = await end_state_with_crash(operator, api, at, moment)
                wrong += [f"{moment} {at}: {line}" for line in differences(clean, end_state)]
                expected[moment] += at <= writes
                reached[moment] += operator.exit_codes.count(CRASH_EXIT_CODE) - exits_before
            if operator.exit_codes.count(CRASH_EXIT_CODE) == before and at > writes:
                break

    figures = (
        f"n = {writes}; ended at {reached[SENT]} when sent, at {reached[ANSWERED]} when answered"
    )
    print(f"\n{figures}")  # noqa: T201 - how much was visited is the result
    assert not wrong, "\n".join(wrong[:20])
    assert set(operator.exit_codes) <= {CRASH_EXIT_CODE, LEADERSHIP_LOST}
    # Two runs of the actions do not make exactly the same number of writes.
    assert all(count - reached[moment] <= max(1, count * 0.1) for moment, count in expected.items())
