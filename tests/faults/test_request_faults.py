"""Requests that are refused, hang or get lost, and watches that are cut: the end is the same."""

import time
from collections import defaultdict
from collections.abc import Iterable

import pytest

from tessera.controller.main import LEADERSHIP_LOST
from tests.faults.courses import course, many
from tests.faults.operators import Wiring, operator
from tests.faults.places import Place
from world import World
from world.api import Api
from world.ends import differences
from world.faulty import RETRY_AFTER_SECONDS, Faults, Proxy, Request, faulty
from world.testing import eventually

PLACES = 6
# Fourteen kinds are watched anew every five seconds, and two seconds later where one was cut.
NEW_WATCHES_A_SECOND = 10
SILENT_SECONDS = 90
# Seconds for a course in which answers take five seconds to be missed.
PATIENCE = 90


def too_soon(requests: Iterable[Request]) -> list[str]:
    """Requests that were repeated before the time that the server had asked to wait."""
    due: dict[tuple[str, str], float] = {}
    found = []
    for one in requests:
        key = one.method, one.path
        if one.at < due.pop(key, 0.0) - 0.05:
            found.append(f"{one.method} {one.path} by {one.agent}")
        if one.fault == "busy":
            due[key] = one.at + RETRY_AFTER_SECONDS
    return found


def busiest(requests: Iterable[Request]) -> int:
    """The most requests in any one second."""
    seconds: dict[int, int] = defaultdict(int)
    for one in requests:
        seconds[int(one.at)] += 1
    return max(seconds.values())


async def played(
    world: World, api: Api, faults: Faults, name: str, rounds: int = 1
) -> tuple[list[object], Proxy, float]:
    """The same course in several places at once through a line; how they ended, and how long."""
    async with faulty(world.folder, faults) as (proxy, kubeconfig):
        async with operator(Wiring(kubeconfig=kubeconfig)) as one:
            begun = time.monotonic()
            found: list[object] = []
            for turn in range(rounds):
                names = [f"{name}-{turn}-{index}" for index in range(PLACES)]
                found += await many(api, names, PATIENCE)
            seconds = time.monotonic() - begun
            assert set(one.ends) <= {LEADERSHIP_LOST}, "it ends for want of a lease alone"
        return found, proxy, seconds


@pytest.mark.parametrize(
    ("share", "rounds"),
    [
        pytest.param(0.01, 6, marks=pytest.mark.full),
        (0.1, 1),
        pytest.param(0.1, 2, marks=pytest.mark.full),
    ],
)
async def test_refused_hung_and_lost_requests_change_no_end_and_make_no_storm(
    world: World, api: Api, share: float, rounds: int
) -> None:
    name = f"bad-{round(share * 100)}-{rounds}"
    clean, calm, _ = await played(world, api, Faults(), f"{name}-calm")
    faults = Faults(seed=20261120, share=share, watch_seconds=5)
    found, stormy, seconds = await played(world, api, faults, name, rounds)
    assert not (wrong := differences(clean * rounds, found)), "\n".join(wrong[:20])

    expected = rounds * len(calm.requests)
    figures = f"{len(stormy.requests)} requests where {expected} would do"
    print(f"\n{figures}, in {seconds:.0f} s: {dict(stormy.counts)}")  # noqa: T201 - the result
    assert len(stormy.counts) >= 3, "several kinds were injected"
    assert not too_soon(stormy.requests)
    assert len(stormy.requests) < 1.5 * expected + NEW_WATCHES_A_SECOND * seconds
    assert busiest(stormy.requests) < 3 * busiest(calm.requests)


async def test_what_is_deleted_while_no_watch_arrives_leaves_no_ghost(
    world: World, api: Api
) -> None:
    async with (
        faulty(world.folder, Faults()) as (proxy, kubeconfig),
        operator(Wiring(kubeconfig=kubeconfig)) as one,
    ):
        place = Place(api, "ghosts")
        await course(place, PATIENCE)
        assert await one.knows(place.name, "edited")

        proxy.dark = True
        proxy.cut()
        await place.unserve("edited")
        await eventually(place.deployed, lambda left: "edited" not in left, within=PATIENCE)
        proxy.dark = False

        async def known() -> bool:
            return await one.knows(place.name, "edited")

        await eventually(known, lambda still: not still, within=20)
        assert await one.knows(place.name, "scaled"), "the rest is still there"
        await place.close()


@pytest.mark.full
async def test_a_watch_that_goes_silent_is_begun_anew(world: World, api: Api) -> None:
    async with (
        faulty(world.folder, Faults()) as (proxy, kubeconfig),
        operator(Wiring(kubeconfig=kubeconfig)) as one,
    ):
        place = Place(api, "silent")
        await place.open()
        await place.serve("heard", replicas=0)
        await place.until_deployed(heard=0)
        proxy.mute = True
        await place.serve("unheard", replicas=0)

        async def swallowed() -> int:
            return proxy.swallowed

        await eventually(swallowed, bool)
        proxy.mute = False
        await place.until_deployed(within=SILENT_SECONDS + 20, heard=0, unheard=0)
        assert not one.ends
        await place.close()


async def test_watches_that_tell_an_error_are_begun_anew_and_the_process_lives(
    world: World, api: Api
) -> None:
    async with (
        faulty(world.folder, Faults()) as (proxy, kubeconfig),
        operator(Wiring(kubeconfig=kubeconfig)) as one,
    ):
        place = Place(api, "broken")
        await place.open()
        await place.serve("before", replicas=0)
        await place.until_deployed(within=PATIENCE, before=0)
        begun = proxy.watches
        broken = await proxy.break_watches()
        await place.serve("after", replicas=0)
        await place.until_deployed(within=PATIENCE, before=0, after=0)

        async def begun_anew() -> int:
            return proxy.watches - begun

        assert broken > 0
        await eventually(begun_anew, lambda watches: watches >= broken)
        assert not one.ends
        await place.close()
