"""Requests that are refused, hang or get lost, and watches that end: the end state is the same."""

import time
from collections import defaultdict
from collections.abc import Iterable

import pytest

from tessera.controller.main import LEADERSHIP_LOST
from tests.faults.namespaces import TenantNamespace
from tests.faults.operators import OperatorOptions, running_operator
from tests.faults.user_actions import run_in_namespaces, run_user_actions
from world import World
from world.api import Api
from world.fault_proxy import (
    RETRY_AFTER_SECONDS,
    FaultProxy,
    ProxiedRequest,
    ProxyFaults,
    fault_proxy,
)
from world.object_comparison import differences
from world.testing import eventually

NAMESPACES = 6
# Fourteen kinds are watched again every five seconds, and two seconds later after a failure.
NEW_WATCHES_A_SECOND = 10
SILENT_SECONDS = 90
# What kopf asks when it starts: which kinds there are in the groups that it knows.
DISCOVERY = {
    ("GET", "/api"),
    ("GET", "/api/v1"),
    ("GET", "/apis"),
    ("GET", "/apis/admissionregistration.k8s.io/v1"),
    ("GET", "/apis/apiextensions.k8s.io/v1"),
}
# Seconds for all actions when each lost response takes five seconds to notice.
TIMEOUT_SECONDS = 90


def retried_too_soon(requests: Iterable[ProxiedRequest]) -> list[str]:
    """Return the requests that were repeated before the `Retry-After` of the server."""
    due: dict[tuple[str, str], float] = {}
    early_retries = []
    for request in requests:
        key = request.method, request.path
        if request.at < due.pop(key, 0.0) - 0.05:
            early_retries.append(f"{request.method} {request.path} by {request.agent}")
        if request.fault == "busy":
            due[key] = request.at + RETRY_AFTER_SECONDS
    return early_retries


def most_requests_in_a_second(requests: Iterable[ProxiedRequest]) -> int:
    """Return the highest number of requests in any second."""
    seconds: dict[int, int] = defaultdict(int)
    for request in requests:
        seconds[int(request.at)] += 1
    return max(seconds.values())


def requests_of_kopf(requests: Iterable[ProxiedRequest]) -> set[tuple[str, str]]:
    """Return the methods and paths that kopf asked for, which has a client of its own."""
    return {
        (request.method, request.path) for request in requests if request.agent.startswith("kopf/")
    }


async def run_with_faults(
    world: World, api: Api, faults: ProxyFaults, name: str, rounds: int = 1
) -> tuple[list[object], FaultProxy, float]:
    """Run the actions in several namespaces through a proxy; return end states and seconds."""
    async with fault_proxy(world.folder, faults) as (proxy, kubeconfig):
        async with running_operator(OperatorOptions(kubeconfig=kubeconfig)) as operator:
            started_at = time.monotonic()
            end_states, names = list[object](), list[str]()
            for round_number in range(rounds):
                of_round = [f"{name}-{round_number}-{index}" for index in range(NAMESPACES)]
                end_states += await run_in_namespaces(api, of_round, TIMEOUT_SECONDS)
                names += of_round
            seconds = time.monotonic() - started_at
            assert set(operator.exit_codes) <= {LEADERSHIP_LOST}, (
                "it ends only when it loses the Lease"
            )
        # The next operator would ask for what is in a namespace that ends, and be refused.
        for ended in names:
            await TenantNamespace(api, ended).wait_until_gone()
        return end_states, proxy, seconds


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
    clean, calm, _ = await run_with_faults(world, api, ProxyFaults(), f"{name}-calm")
    faults = ProxyFaults(seed=20261120, share=share, watch_seconds=5)
    end_states, stormy, seconds = await run_with_faults(world, api, faults, name, rounds)
    assert not (wrong := differences(clean * rounds, end_states)), "\n".join(wrong[:20])

    expected = rounds * len(calm.requests)
    figures = f"{len(stormy.requests)} requests where {expected} would do"
    print(f"\n{figures}, in {seconds:.0f} s: {dict(stormy.counts)}")  # noqa: T201 - the result
    assert len(stormy.counts) >= 3, "several kinds were injected"
    assert not retried_too_soon(stormy.requests)
    assert len(stormy.requests) < 1.5 * expected + NEW_WATCHES_A_SECOND * seconds
    assert most_requests_in_a_second(stormy.requests) < 3 * most_requests_in_a_second(calm.requests)


async def test_what_is_deleted_while_no_watch_arrives_leaves_no_ghost(
    world: World, api: Api
) -> None:
    async with (
        fault_proxy(world.folder, ProxyFaults()) as (proxy, kubeconfig),
        running_operator(OperatorOptions(kubeconfig=kubeconfig)) as operator,
    ):
        namespace = TenantNamespace(api, "ghosts")
        await run_user_actions(namespace, TIMEOUT_SECONDS)

        async def both_are_planned() -> None:
            assert await operator.planned_services(namespace.name) == {"edited", "scaled"}

        await eventually(both_are_planned, within=TIMEOUT_SECONDS)
        proxy.blackout = True
        proxy.abort_requests()
        await namespace.delete_service("edited")

        async def deployment_is_deleted() -> None:
            assert "edited" not in await namespace.desired_replicas()

        await eventually(deployment_is_deleted, within=TIMEOUT_SECONDS)
        proxy.blackout = False
        await operator.wait_until_unplanned(namespace.name, "edited")
        planned = await operator.planned_services(namespace.name)
        assert planned == {"scaled"}, "the other service stays"
        await namespace.delete()


async def test_kopf_asks_for_the_kinds_and_for_no_object(world: World, api: Api) -> None:
    async with (
        fault_proxy(world.folder, ProxyFaults()) as (proxy, kubeconfig),
        running_operator(OperatorOptions(kubeconfig=kubeconfig)),
    ):
        namespace = TenantNamespace(api, "asked")
        await namespace.create()

        async def kopf_has_started() -> None:
            assert requests_of_kopf(proxy.requests) >= DISCOVERY

        await eventually(kopf_has_started, within=TIMEOUT_SECONDS)
        for replicas in 0, 1:
            await namespace.apply_service("served", replicas=replicas)
            await namespace.wait_for_replicas(within=TIMEOUT_SECONDS, served=replicas)
        await namespace.delete()
    assert requests_of_kopf(proxy.requests) == DISCOVERY


@pytest.mark.full
async def test_a_watch_that_goes_silent_is_restarted(world: World, api: Api) -> None:
    async with (
        fault_proxy(world.folder, ProxyFaults()) as (proxy, kubeconfig),
        running_operator(OperatorOptions(kubeconfig=kubeconfig)) as operator,
    ):
        namespace = TenantNamespace(api, "silent")
        await namespace.create()
        await namespace.apply_service("heard", replicas=0)
        await namespace.wait_for_replicas(heard=0)
        proxy.silent = True
        await namespace.apply_service("unheard", replicas=0)

        async def events_are_dropped() -> None:
            assert proxy.dropped > 0

        await eventually(events_are_dropped)
        proxy.silent = False
        await namespace.wait_for_replicas(within=SILENT_SECONDS + 20, heard=0, unheard=0)
        assert not operator.exit_codes
        await namespace.delete()


async def test_watches_that_end_with_an_error_are_restarted_and_the_process_lives(
    world: World, api: Api
) -> None:
    async with (
        fault_proxy(world.folder, ProxyFaults()) as (proxy, kubeconfig),
        running_operator(OperatorOptions(kubeconfig=kubeconfig)) as operator,
    ):
        namespace = TenantNamespace(api, "broken")
        await namespace.create()
        await namespace.apply_service("before", replicas=0)
        await namespace.wait_for_replicas(within=TIMEOUT_SECONDS, before=0)
        watches_before = proxy.watches
        broken = await proxy.break_watches()
        await namespace.apply_service("after", replicas=0)
        await namespace.wait_for_replicas(within=TIMEOUT_SECONDS, before=0, after=0)

        async def watches_are_restarted() -> None:
            assert proxy.watches - watches_before >= broken

        assert broken > 0
        await eventually(watches_are_restarted)
        assert not operator.exit_codes
        await namespace.delete()
