"""A part of a process that raises goes on a moment later, and takes no other along."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from tessera.adapters import run_forever as run_forever_module
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.leader_election import LeaderElector
from tessera.adapters.run_forever import run_forever
from tessera.controller.runtime import Runtime
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.reconcile import reflector as reflector_module
from tessera.reconcile.observe import Observations
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.resources.api_resources import NODES
from tessera.settings import Settings
from tests.builders import NOW
from tests.memory_cluster import MemoryCluster


class _Raising:
    """Stands for a part of a process; it raises three times."""

    def __init__(self, function: Callable[..., Any] = lambda: None) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls <= 3:
            raise KeyError("defect")
        return self._function(*arguments, **named)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start what failed again at once."""
    monkeypatch.setattr(run_forever_module, "RESTART_SECONDS", 0.001)
    monkeypatch.setattr(reflector_module, "_RETRY_SECONDS", 0.001)


async def _until_called(stub: _Raising, *tasks: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(60):
        while stub.calls < 3:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)
    for task in tasks:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_raises_or_ends_is_started_again_and_told() -> None:
    stub, failures = _Raising(), list[None]()
    task = asyncio.create_task(run_forever("part", stub, failed=lambda: failures.append(None)))
    await _until_called(stub, task)
    assert len(failures) >= 2


async def test_a_part_that_fails_while_it_is_cancelled_does_not_go_on() -> None:
    begun, fails, begun_again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        (begun_again if begun.is_set() else begun).set()
        await fails.wait()
        raise KeyError("defect")

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    task = asyncio.create_task(run_forever("part", run))
    await begun.wait()
    fails.set()
    task.cancel()
    going_on = asyncio.create_task(begun_again.wait())
    await asyncio.wait((task, going_on), return_when=asyncio.FIRST_COMPLETED)
    going_on.cancel()
    assert task.cancelled()


@pytest.mark.parametrize(
    "part",
    [
        "_reconcile",
        "_events.run",
        "_events.write_pending",
        "_fleet.write",
        "_fleet._applier.queue._begin",
        "_fleet._applier.queue._order.next",
        "_metrics.run",
        "_metrics.read",
        "_metrics.read_load_history",
        "_metrics.restore_scaling",
        "_metrics.restore_spend",
    ],
)
async def test_a_leader_outlives_each_of_its_parts(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(prometheus_url="http://127.0.0.1:9", batch_image="tessera/batch:test")
    runtime = Runtime(settings, cast("KubeCluster", MemoryCluster()))
    runtime.synced.set()
    runtime.elector.elected.set()
    owner = cast("Any", runtime)
    *path, name = part.split(".")
    for attribute in path:
        owner = getattr(owner, attribute)
    stub = _Raising(getattr(owner, name))
    monkeypatch.setattr(owner, name, stub)
    task = asyncio.create_task(runtime._lead())
    if name.startswith("restore"):
        stub.calls += 2  # it is called once
    async with asyncio.timeout(60):
        while stub.calls < 3:
            runtime._wakes.change()
            runtime._events._wake.set()
            await asyncio.sleep(0.001)
    await _until_called(stub, task)
    await runtime.close()


@pytest.mark.parametrize("method", ["watch", "list", "_store_change"])
async def test_a_reflector_outlives_a_defect_in_one_kind(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = MemoryCluster()
    store = Store((NODES, INFERENCE_SERVICES))
    reflector = Reflector(cluster, store, Observations(), lambda _: None, (NODES,))
    await reflector.list_all()
    cluster.put(NODES, {"metadata": {"name": "a"}})
    if method == "list":
        monkeypatch.setattr(reflector_module, "POLL_SECONDS", 0.001)
        monkeypatch.setattr(reflector_module, "RELIST_SECONDS", 0.001)
    owner = reflector if method == "_store_change" else cluster
    stub = _Raising(getattr(owner, method))
    monkeypatch.setattr(owner, method, stub)
    task = asyncio.create_task(reflector.run())
    await _until_called(stub, task)


async def test_an_elector_that_cannot_read_a_lease_leads_until_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elector = LeaderElector(
        cast("KubeCluster", MemoryCluster()),
        namespace="tessera-system",
        name="lease",
        identity="a",
        clock=lambda: NOW,
        monotonic=lambda: 0.0,
    )
    monkeypatch.setattr(elector, "_acquire_or_renew", _Raising())
    assert await elector.try_acquire_or_renew() is False


async def test_an_operator_with_a_gateway_says_that_none_reports_yet() -> None:
    cluster = cast("Any", MemoryCluster())
    cluster.server_date = None
    for account, expected in ((None, []), ("tessera-gateway", [0.0])):
        runtime = Runtime(Settings(gateway_account=account), cluster)
        families = {family.name: family for family in runtime.telemetry.families()}
        await runtime.close()
        assert [each.value for each in families["tessera_gateways"].samples] == expected
