"""Two operators whose clocks differ by hours: never two that write, and no long gap."""

import os
import signal
import time
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from tessera.controller.main import LEADERSHIP_LOST
from tests.faults.namespaces import TenantNamespace
from tests.faults.operators import OperatorOptions, RestartingOperator, running_operator
from world import World
from world.api import Api
from world.fault_proxy import FaultProxy, ProxiedRequest, ProxyFaults, fault_proxy
from world.testing import eventually

FAIL_OVER_SECONDS = 20
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
WRITES = ("PATCH", "POST", "DELETE")


class OperatorPair:
    """Two operators, each behind its own proxy, which records what it sends."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.operators: dict[str, RestartingOperator] = {}
        self.proxies: dict[str, FaultProxy] = {}

    async def wait_for_leader(self, *names: str) -> str:
        async def pod_leads() -> str:
            lease = await self._api.get(f"{LEASES}/tessera-operator")
            holder = lease["spec"].get("holderIdentity")
            assert holder in names
            return str(holder)

        return await eventually(pod_leads, within=90)

    def other(self, name: str) -> str:
        return next(pod for pod in self.operators if pod != name)

    def writes(self, name: str) -> list[ProxiedRequest]:
        """Return its write requests, except those for the Lease."""
        return [
            request
            for request in self.proxies[name].requests
            if request.method in WRITES and not request.path.startswith(LEASES)
        ]

    def writers_in_order(self) -> list[str]:
        """Return who wrote, in order of time; consecutive writes of one operator count once."""
        order = sorted((request.at, name) for name in self.proxies for request in self.writes(name))
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
        pair = OperatorPair(api)
        for pod, skew in (("left", timedelta()), ("right", ahead)):
            proxy, kubeconfig = await stack.enter_async_context(
                fault_proxy(world.folder, ProxyFaults())
            )
            options = OperatorOptions(kubeconfig=kubeconfig, pod=f"{name}-{pod}", clock_ahead=skew)
            pair.proxies[options.pod] = proxy
            pair.operators[options.pod] = await stack.enter_async_context(running_operator(options))
        first = await pair.wait_for_leader(*pair.operators)
        second = pair.other(first)
        namespace = TenantNamespace(api, name)
        await namespace.create()
        await namespace.apply_service("one", replicas=0)
        await namespace.wait_for_replicas(one=0)
        assert pair.writers_in_order() == [first]

        # It neither writes nor renews, and does not know that time has passed when it resumes.
        pid = pair.operators[first].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        await namespace.apply_service("two", replicas=0)
        await namespace.wait_for_replicas(one=0, two=0)
        took = pair.writes(second)[0].at - stopped
        os.kill(pid, signal.SIGCONT)

        async def leadership_is_lost() -> None:
            assert pair.operators[first].exit_codes == [LEADERSHIP_LOST]

        await eventually(leadership_is_lost, within=90)
        await namespace.apply_service("three", replicas=0)
        await namespace.wait_for_replicas(one=0, two=0, three=0)
        assert pair.writers_in_order() == [first, second], "the resumed operator wrote nothing"
        print(f"\nthe other wrote {took:.1f} s after the leader had stopped")  # noqa: T201
        assert took <= FAIL_OVER_SECONDS
        await namespace.delete()
