"""The operator's process ends at each of its writing requests in turn; the end is the same.

The method is that of Sieve: every state in which a controller can leave its objects half done is
visited, and a fresh process has to bring them to the same end. With `--full` the process ends at
each request twice, when it is sent and when it is answered; otherwise at each sixth request, in
these ways in turn.
"""

import itertools
from collections import Counter
from typing import Any

import pytest

from tests.faults.courses import course
from tests.faults.operators import ANSWERED, ENDED_BY_FUSE, SENT, Operator, Wiring, operator
from tests.faults.places import Place
from world import World
from world.api import Api
from world.ends import differences

# The garbage collector of a new control plane looks for new kinds every half minute.
WARM_SECONDS = 90
# Without `--full` the process ends at each so many requests only.
SAMPLED_EACH = 6


def moments(at: int, *, full: bool) -> tuple[int, ...]:
    """When the process ends at this request."""
    if full:
        return (SENT, ANSWERED)
    sample, skipped = divmod(at, SAMPLED_EACH)
    return () if skipped else (SENT if sample % 2 else ANSWERED,)


async def ended_at(one: Operator, api: Api, at: int, moment: int) -> dict[str, Any]:
    """How the course ends when the process does at that request."""
    place = Place(api, f"{'sent' if moment == SENT else 'answered'}-{at}")
    one.fuse.set(place.name, at, moment)
    found = await course(place)
    await place.close()
    return found


async def test_wherever_the_process_ends_between_two_writes_the_end_is_the_same(
    world: World, api: Api, pytestconfig: pytest.Config
) -> None:
    full = pytestconfig.getoption("--full")
    async with operator(Wiring(kubeconfig=world.kubeconfig)) as one:
        await course(Place(api, "warm"), WARM_SECONDS)
        one.fuse.set("clean")
        clean = await course(Place(api, "clean"))
        writes = one.fuse.seen

        wrong: list[str] = []
        wanted, reached = Counter[int](), Counter[int]()
        for at in itertools.count(1):
            before = len(one.ends)
            for moment in moments(at, full=full):
                deaths = len(one.ends)
                found = await ended_at(one, api, at, moment)
                wrong += [f"{moment} {at}: {line}" for line in differences(clean, found)]
                wanted[moment] += at <= writes
                reached[moment] += len(one.ends) - deaths
            if len(one.ends) == before and at > writes:
                break

    figures = (
        f"n = {writes}; ended at {reached[SENT]} when sent, at {reached[ANSWERED]} when answered"
    )
    print(f"\n{figures}")  # noqa: T201 - how much was visited is the result
    assert not wrong, "\n".join(wrong[:20])
    assert set(one.ends) == {ENDED_BY_FUSE}, "the process ended for no other reason"
    # Two plays of the course do not make exactly the same number of writes.
    assert all(count - reached[moment] <= max(1, count * 0.1) for moment, count in wanted.items())
