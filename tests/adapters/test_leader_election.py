"""Two electors at a real API server, with their own clocks that tests advance."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from typing_extensions import override

from tessera.adapters.clock import now
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.adapters.kube.leader_election import LEASE_DURATION, RENEW_DEADLINE, LeaderElector
from tessera.ports import ClusterError
from world import World

_numbers = itertools.count(1)


class ManualClock:
    """A monotonic clock that stands still until a test advances it."""

    def __init__(self, start: float) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now


class FailingConnection(KubeCluster):
    """A connection that fails, or waits for ever, when a test says so."""

    hangs = False
    silent = False

    @override
    async def request(self, *arguments: Any, **options: Any) -> tuple[int, Any]:
        if self.silent:
            await asyncio.Event().wait()
        if self.hangs:
            raise ClusterError("the API server did not answer: TimeoutError")
        return await super().request(*arguments, **options)


class CountingConnection(FailingConnection):
    """A connection that counts its requests by their verbs."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.verbs = Counter[str]()

    @override
    async def request(self, *arguments: Any, **options: Any) -> tuple[int, Any]:
        self.verbs[arguments[0]] += 1
        return await super().request(*arguments, **options)


class Electors:
    """Two candidates for one lease, whose clocks differ by eleven days."""

    def __init__(
        self, connection_of_a: FailingConnection, connection_of_b: FailingConnection
    ) -> None:
        self._name = f"lease-{next(_numbers)}"
        self.connection_of_a = connection_of_a
        self.clocks = (ManualClock(5.0), ManualClock(1e6))
        self.a = self.elector("a", self.clocks[0], connection_of_a)
        self.b = self.elector("b", self.clocks[1], connection_of_b)

    def elector(
        self, identity: str, clock: ManualClock, connection: FailingConnection
    ) -> LeaderElector:
        return LeaderElector(
            connection,
            namespace="default",
            name=self._name,
            identity=identity,
            clock=now,
            monotonic=clock,
        )

    def advance_clocks(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.now += seconds

    def leaders(self) -> list[str]:
        return [name for name, candidate in (("a", self.a), ("b", self.b)) if candidate.is_leader()]


@pytest.fixture
async def electors(world: World) -> AsyncIterator[Electors]:
    connections = [FailingConnection(await connect(str(world.kubeconfig))) for _ in range(2)]
    yield Electors(*connections)
    for connection in connections:
        await connection.close()


async def test_the_first_leads_and_the_second_waits(electors: Electors) -> None:
    assert await electors.a.try_acquire_or_renew()
    assert not await electors.b.try_acquire_or_renew()
    assert electors.leaders() == ["a"]


async def test_a_seized_lease_ends_the_leadership_and_comes_back_later(electors: Electors) -> None:
    await electors.a.try_acquire_or_renew()
    await electors.b.seize(60)
    assert not await electors.a.try_acquire_or_renew()
    electors.advance_clocks(RENEW_DEADLINE)
    assert electors.leaders() == []
    electors.advance_clocks(LEASE_DURATION)
    assert not await electors.a.try_acquire_or_renew()
    electors.advance_clocks(60)
    assert await electors.a.try_acquire_or_renew()


async def test_a_renewal_is_one_request_until_somebody_else_writes(world: World) -> None:
    connections = [CountingConnection(await connect(str(world.kubeconfig))) for _ in range(2)]
    electors = Electors(*connections)
    verbs = connections[0].verbs
    for _ in range(4):
        assert await electors.a.try_acquire_or_renew()
    # It is created, read once, and then written as the last renewal left it.
    assert verbs == Counter(GET=2, POST=1, PUT=3)
    await electors.b.seize(60)
    assert not await electors.a.try_acquire_or_renew()
    assert verbs == Counter(GET=3, POST=1, PUT=4)
    for connection in connections:
        await connection.close()


async def test_a_renewed_lease_is_never_taken(electors: Electors) -> None:
    await electors.a.try_acquire_or_renew()
    for _ in range(10):
        electors.advance_clocks(4)
        assert await electors.a.try_acquire_or_renew()
        assert not await electors.b.try_acquire_or_renew()
    assert electors.leaders() == ["a"]


async def test_at_no_moment_do_two_lead_while_a_silent_leader_is_replaced(
    electors: Electors,
) -> None:
    await electors.a.try_acquire_or_renew()
    seen = []
    for _ in range(12):
        await electors.b.try_acquire_or_renew()
        seen.append(electors.leaders())
        electors.advance_clocks(2)
    assert all(len(leaders) <= 1 for leaders in seen)
    assert seen[0] == ["a"]
    assert seen[int(RENEW_DEADLINE / 2)] == []
    assert seen[int(LEASE_DURATION / 2) + 1] == ["b"]


async def test_a_released_lease_is_taken_at_once(electors: Electors) -> None:
    await electors.a.try_acquire_or_renew()
    await electors.a.release()
    assert electors.leaders() == []
    assert await electors.b.try_acquire_or_renew()


async def test_the_same_pod_leads_again_at_once_after_a_crash(electors: Electors) -> None:
    await electors.a.try_acquire_or_renew()
    assert await electors.elector(
        "a", ManualClock(77.0), electors.connection_of_a
    ).try_acquire_or_renew()


async def test_of_two_at_the_same_moment_one_wins(electors: Electors) -> None:
    outcomes = await asyncio.gather(
        electors.a.try_acquire_or_renew(), electors.b.try_acquire_or_renew()
    )
    assert sorted(outcomes) == [False, True]
    electors.advance_clocks(LEASE_DURATION + 1)
    await electors.a.try_acquire_or_renew()
    await electors.b.try_acquire_or_renew()
    electors.advance_clocks(LEASE_DURATION + 1)
    outcomes = await asyncio.gather(
        electors.a.try_acquire_or_renew(), electors.b.try_acquire_or_renew()
    )
    assert len(electors.leaders()) == 1
    assert True in outcomes


async def test_a_leader_whose_api_server_hangs_stops_leading_in_time(
    electors: Electors,
) -> None:
    await electors.a.try_acquire_or_renew()
    electors.connection_of_a.hangs = True
    electors.advance_clocks(RENEW_DEADLINE - 1)
    assert not await electors.a.try_acquire_or_renew()
    assert electors.leaders() == ["a"]
    electors.advance_clocks(1.5)
    assert electors.leaders() == []


async def test_a_leader_keeps_half_of_its_time_for_another_attempt(electors: Electors) -> None:
    await electors.a.try_acquire_or_renew()
    electors.connection_of_a.silent = True
    electors.advance_clocks(RENEW_DEADLINE - 0.2)
    async with asyncio.timeout(RENEW_DEADLINE / 2):
        assert not await electors.a.try_acquire_or_renew()
    electors.connection_of_a.silent = False
    # The real API server may need more than the half of what is left.
    electors.advance_clocks(-RENEW_DEADLINE / 2)
    assert await electors.a.try_acquire_or_renew()
    assert electors.leaders() == ["a"]
