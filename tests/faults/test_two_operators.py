"""Two operators whose times of day differ by hours: never two that write, and no long gap."""

import os
import signal
import time
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from tessera.controller.main import LEADERSHIP_LOST
from tests.faults.operators import Operator, Wiring, operator
from tests.faults.places import Place
from world import World
from world.api import Api, Json
from world.faulty import Faults, Proxy, Request, faulty
from world.testing import eventually

FAIL_OVER_SECONDS = 20
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
WRITES = ("PATCH", "POST", "DELETE")


class Pair:
    """Two operators, each with a line of its own, on which is seen what it sends."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.operators: dict[str, Operator] = {}
        self.lines: dict[str, Proxy] = {}

    async def leader(self) -> str:
        lease: Json = await self._api.get(f"{LEASES}/tessera-operator")
        return str(lease["spec"]["holderIdentity"])

    async def until_led_by(self, *names: str) -> str:
        return await eventually(
            self.leader, lambda holder: holder in names, within=FAIL_OVER_SECONDS + 10
        )

    def other(self, name: str) -> str:
        return next(one for one in self.operators if one != name)

    def writes(self, name: str) -> list[Request]:
        """What it wrote, the Lease apart."""
        return [
            one
            for one in self.lines[name].requests
            if one.method in WRITES and not one.path.startswith(LEASES)
        ]

    def turns(self) -> list[str]:
        """Who wrote, in the order of time, each stretch of one writer once."""
        order = sorted((one.at, name) for name in self.lines for one in self.writes(name))
        names = [name for _, name in order]
        return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


@pytest.mark.parametrize(
    "ahead", [timedelta(hours=1), pytest.param(timedelta(hours=-1), marks=pytest.mark.full)]
)
async def test_with_clocks_an_hour_apart_one_writes_and_the_other_takes_over(
    world: World, api: Api, ahead: timedelta
) -> None:
    name = "skewed" if ahead > timedelta() else "skewed-back"
    async with AsyncExitStack() as stack:
        pair = Pair(api)
        for pod, skew in (("left", timedelta()), ("right", ahead)):
            line, kubeconfig = await stack.enter_async_context(faulty(world.folder, Faults()))
            wiring = Wiring(kubeconfig=kubeconfig, pod=f"{name}-{pod}", clock_ahead=skew)
            pair.lines[wiring.pod] = line
            pair.operators[wiring.pod] = await stack.enter_async_context(operator(wiring))
        first = await pair.until_led_by(*pair.operators)
        second = pair.other(first)
        place = Place(api, name)
        await place.open()
        await place.serve("one", replicas=0)
        await place.until_deployed(one=0)
        assert pair.turns() == [first]

        # It neither writes nor renews, and believes that no time has passed when it wakes up.
        pid = pair.operators[first].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        await place.serve("two", replicas=0)
        await place.until_deployed(within=FAIL_OVER_SECONDS + 10, one=0, two=0)
        took = pair.writes(second)[0].at - stopped
        os.kill(pid, signal.SIGCONT)

        async def ends() -> list[int | None]:
            return pair.operators[first].ends

        await eventually(ends, lambda codes: codes == [LEADERSHIP_LOST], within=20)
        await place.serve("three", replicas=0)
        await place.until_deployed(one=0, two=0, three=0)
        assert pair.turns() == [first, second], "whoever woke up again wrote nothing"
        print(f"\nthe other wrote {took:.1f} s after the leader had stopped")  # noqa: T201
        assert took <= FAIL_OVER_SECONDS
        await place.close()
