"""Others give the operator wrong data: Prometheus, its node's clock, a restored etcd."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from fractions import Fraction

import pytest
from aiohttp import web

from tessera.adapters.clock import now
from tessera.controller.main import LEADERSHIP_LOST
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tests.faults.namespaces import TenantNamespace, exists, wait_until_served
from tests.faults.operators import OperatorOptions, running_operator
from tests.faults.user_actions import run_user_actions
from world import World
from world.api import Api, Json
from world.object_comparison import differences
from world.slots import free_port
from world.testing import eventually

TIMEOUT_SECONDS = 90
STEP_SECONDS = 12
# USD of a slice of the pool of `namespaces.py` in a second: half of 1/7 and 1/8 of 2 USD per hour.
SLICE_SECOND = 2 * (Fraction(1, 7) + Fraction(1, 8)) / 2 / 3600


async def _no_data(_: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "error", "error": "no such tenant"})


async def _null(_: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "success", "data": None})


async def _scalar(_: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "success", "data": {"resultType": "scalar", "result": 1}})


async def _drip(request: web.Request) -> web.StreamResponse:
    """Send a byte a second."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for byte in b'{"status":"success","data":{"resultType":"vector","result":[' + b" " * 600:
        await response.write(bytes([byte]))
        await asyncio.sleep(1)
    return response


_ANSWERS = {"no-data": _no_data, "null": _null, "scalar": _scalar, "dripping": _drip}


@asynccontextmanager
async def prometheus_that(answers: str) -> AsyncIterator[str]:
    """Serve one kind of bad answer to every request; yield the URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _ANSWERS[answers])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "answers",
    [
        "no-data",
        pytest.param("dripping", marks=pytest.mark.full),
        pytest.param("null", marks=pytest.mark.full),
        pytest.param("scalar", marks=pytest.mark.full),
    ],
)
async def test_a_prometheus_without_data_delays_and_ends_nothing(
    world: World, api: Api, answers: str
) -> None:
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)):
        clean = await run_user_actions(TenantNamespace(api, f"before-{answers}"), TIMEOUT_SECONDS)
    async with (
        prometheus_that(answers) as url,
        running_operator(
            OperatorOptions(kubeconfig=world.kubeconfig, prometheus_url=url)
        ) as operator,
    ):
        namespace = TenantNamespace(api, answers)
        end_state = await run_user_actions(namespace, TIMEOUT_SECONDS)
        await namespace.delete()
        assert set(operator.exit_codes) <= {LEADERSHIP_LOST}
    assert not (wrong := differences(clean, end_state)), "\n".join(wrong[:20])


@pytest.mark.parametrize(
    "step",
    [
        timedelta(hours=2),
        pytest.param(timedelta(hours=-2), marks=pytest.mark.full),
        pytest.param(timedelta(days=-3), marks=pytest.mark.full),
        pytest.param(timedelta(days=40), marks=pytest.mark.full),
    ],
)
async def test_a_clock_that_steps_charges_nothing_wrong(
    world: World, api: Api, step: timedelta
) -> None:
    namespace = TenantNamespace(api, f"step-{step.days}-{step.seconds}")
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        await namespace.create()
        await namespace.apply_service("paid", replicas=2)
        await namespace.wait_for_replicas(paid=2)
        await namespace.wait_until_settled(TIMEOUT_SECONDS)
        operator.set_clock(step)
        await asyncio.sleep(STEP_SECONDS)  # the fault itself
        operator.set_clock(timedelta())
        await namespace.apply_service("paid", replicas=3)
        await namespace.wait_for_replicas(paid=3)
        await assert_exact_spend(namespace, replicas=3)
        assert set(operator.exit_codes) <= {LEADERSHIP_LOST}
        await namespace.delete()


async def assert_exact_spend(namespace: TenantNamespace, replicas: int) -> None:
    """Assert that the record goes on, and has price x time of every replica since it was bound."""
    api = namespace.api

    async def pods_are_bound() -> list[Json]:
        pods: list[Json] = (await api.get(PODS.path(namespace.name)))["items"]
        unbound = [pod["metadata"]["name"] for pod in pods if not pod["spec"].get("nodeName")]
        assert (len(pods), unbound) == (replicas, [])
        return pods

    running = await eventually(pods_are_bound, within=90)
    started_at = now()

    async def all_pods_are_charged() -> Json:
        budget = await api.get(TENANT_BUDGETS.path(None, namespace.name))
        record: Json = budget["status"]["spend"]
        assert datetime.fromisoformat(record["asOf"]) > started_at
        assert len(record["running"]) == replicas
        return record

    record = await eventually(all_pods_are_charged, within=150)
    as_of = datetime.fromisoformat(record["asOf"])
    assert as_of <= now()
    owed = sum(
        Fraction((as_of - datetime.fromisoformat(condition["lastTransitionTime"])).total_seconds())
        for pod in running
        for condition in pod["status"]["conditions"]
        if condition["type"] == "PodScheduled"
    )
    spent = Fraction(record["windows"][0]["spent"])
    assert abs(spent - owed * SLICE_SECOND) < Fraction(1, 10**6), (
        float(spent),
        float(owed * SLICE_SECOND),
    )
    assert not record["incompleteWindows"]


@pytest.mark.full
async def test_an_etcd_that_was_restored_under_a_running_operator_is_noticed(
    world: World, api: Api
) -> None:
    data, saved = world.folder / "etcd", world.folder / "etcd-saved"
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        early, late = TenantNamespace(api, "early"), TenantNamespace(api, "late")
        await early.create()
        await early.apply_service("kept", replicas=1)
        await early.wait_for_replicas(kept=1)
        await early.wait_until_settled(TIMEOUT_SECONDS)
        world.end_program("etcd")
        shutil.copytree(data, saved)
        world.start_program("etcd")
        await wait_until_served(api)
        await late.create()
        await late.apply_service("ghost", replicas=1)
        await late.wait_for_replicas(ghost=1)
        await early.apply_service("kept", replicas=3)
        await early.wait_for_replicas(kept=3)

        world.end_program("kube-apiserver")
        world.end_program("etcd")
        shutil.rmtree(data)
        saved.rename(data)
        world.start_program("etcd")
        world.start_program("kube-apiserver")
        await wait_until_served(api)
        await early.wait_for_replicas(kept=1)
        await operator.wait_until_unplanned(late.name, "ghost")
        deployment = DEPLOYMENTS.path(late.name, "ghost-a100-1g-10gb")
        assert not await exists(api, deployment)
        await early.delete()
