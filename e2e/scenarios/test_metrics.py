"""The real Prometheus: what the operator queries, and what it exports itself."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import partial

import aiohttp
import pytest

from demo.cluster import NAMESPACE, Json, condition
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from scenarios.commands import run_tessera
from tessera.adapters.clock import now
from tessera.adapters.engine_client import HttpEngines
from tessera.adapters.prometheus.load import read_load
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.domain.observed.snapshot import PodReading, Readings, Ref, SpeedReading
from tessera.resources.api_resources import PODS
from world.api import SERVICE_ACCOUNTS
from world.testing import eventually


async def test_every_reading_of_a_loaded_replica_comes_through(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    (pod,) = await namespace.list_objects(PODS)
    pod_ref = Ref(namespace.name, pod["metadata"]["name"])
    service_ref = Ref(namespace.name, "chat")
    metrics = PrometheusMetrics(namespace.cluster.world.prometheus_url, now)

    async def is_loaded() -> PodReading:
        readings = await metrics.read()
        reading = readings.pods.get(pod_ref, PodReading())
        assert reading.waiting, readings
        assert reading.running, reading
        assert (reading.activity or 0) > 0.5, reading
        assert readings.finished.get(service_ref, 0) > 0, readings
        rates = readings.token_rates.get(service_ref)
        assert rates is not None, readings
        assert rates.prompt > 0, rates
        assert rates.output > 0, rates
        return reading

    async def is_recorded() -> None:
        history = await metrics.load_history(timedelta(seconds=30))
        loads = history.get(service_ref, ())
        assert max((load.waiting or 0 for load in loads), default=0) > 0, loads
        curve = await read_load(metrics, service_ref, now())
        assert curve is not None
        assert curve.peak == 1

    async with steady_load(await namespace.cluster.address(ref), ref.name, clients=60, tokens=100):
        reading = await eventually(is_loaded)
        await eventually(is_recorded)
    assert 0 < (reading.running or 0) <= (await namespace.service_status())["variant"]["maxNumSeqs"]


@pytest.mark.full
async def test_the_speed_of_a_loaded_replica_is_reported_beside_the_predicted_speed(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    metrics = PrometheusMetrics(namespace.cluster.world.prometheus_url, now)
    service_ref = Ref(namespace.name, "chat")

    async def is_reported() -> Json:
        service = await namespace.cluster.service(ref)
        speed: Json | None = service["status"].get("speed")
        assert speed is not None
        verdict = condition(service, "SpeedAsPredicted")
        assert verdict.get("status") in ("True", "False"), verdict
        assert verdict["reason"] == speed["reason"]
        return speed

    async def is_read() -> SpeedReading:
        readings = (await metrics.read()).speeds.get(service_ref, ())
        assert readings
        missing = [
            field.name for field in fields(readings[0]) if getattr(readings[0], field.name) is None
        ]
        assert missing == []
        return readings[0]

    async def is_explained() -> str:
        result = await run_tessera(
            namespace.cluster,
            *("explain", "chat", "-n", namespace.name),
            *("--prometheus", namespace.cluster.world.prometheus_url),
        )
        explanation = result.output.partition("\nSPEED: ")[2].partition("\n\n")[0]
        for part in (
            "output tok/s",
            "mean batch size",
            "MFU and MBU",
            "reported by the engine",
        ):
            assert part in explanation, result
        return explanation

    async def is_printed() -> None:
        itl = (await namespace.service_status())["speed"]["itlMs"]
        table = await namespace.cluster.run("kubectl", "--namespace", namespace.name, "get", "tsvc")
        assert itl["predicted"] in table
        assert itl["measured"] in table

    async with steady_load(await namespace.cluster.address(ref), ref.name, clients=12, tokens=40):
        speed = await eventually(is_reported)
        reading = await eventually(is_read)
        print(await eventually(is_explained))
    variant, itl = (await namespace.service_status())["variant"], speed["itlMs"]
    # The simulator steps by the same model of speed; the machine adds its own delay.
    assert 0.8 < float(itl["measured"]) / float(itl["predicted"]) < 2
    assert speed["requests"] >= 100
    assert reading.variant == variant["name"]
    assert abs((reading.kv_tokens or 0) / variant["kvCacheTokens"] - 1) < 0.01
    await eventually(is_printed)
    selector = f'{{exported_namespace="{namespace.name}",service="chat",kind="measured"}} > 0'
    for name in ("output_tokens_per_second", "itl_seconds", "cost_per_million_tokens"):
        await namespace.wait_for_samples(f"tessera_service_{name}{selector}")


async def test_a_prometheus_that_is_away_is_a_reading_with_a_problem() -> None:
    readings = await PrometheusMetrics("http://127.0.0.1:9", now).read()
    assert isinstance(readings, Readings)
    assert "Prometheus at http://127.0.0.1:9: ConnectionError" in (readings.problem or "")


async def test_an_engine_is_asked_for_a_token_and_for_its_load(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    engines = HttpEngines()
    try:
        base = await namespace.cluster.address(ref)
        assert await engines.probe(base, ref.name) is None
        assert "404" in str(await engines.probe(base, "another"))
        assert "the connection failed" in str(await engines.probe("http://127.0.0.1:9", ref.name))
        assert await engines.in_flight(base.removeprefix("http://")) == 0
        assert await engines.in_flight("127.0.0.1:9") is None
    finally:
        await engines.close()


async def test_the_operator_exports_its_own_metrics(namespace: ScenarioNamespace) -> None:
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    selector = f'namespace="{NAMESPACE}"'
    await namespace.wait_for_samples(f"tessera_leader{{{selector}}} == 1")
    ready = f'tessera_service_ready_replicas{{exported_namespace="{namespace.name}"}} == 1'
    await namespace.wait_for_samples(ready)
    await namespace.wait_for_samples(f"tessera_reconcile_duration_seconds_count{{{selector}}}")


async def test_the_operator_shows_its_metrics_only_to_readers_of_that_path(
    namespace: ScenarioNamespace,
) -> None:
    world = namespace.cluster.world
    addresses = [pod.address for pod in world.containers() if pod.container == "operator"]
    account = SERVICE_ACCOUNTS.path(namespace.name, "default")
    await eventually(partial(namespace.cluster.api.get, account))
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await namespace.cluster.api.create(f"{account}/token", request))["status"]["token"]

    async def expect_status(headers: Mapping[str, str], status: int) -> None:
        async def is_reviewed() -> int:
            url = f"https://{addresses[0]}:8080/metrics"
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.get(url, ssl=False) as response,
            ):
                # Right after another refusal an unknown token waits for its review.
                assert response.status != 429
                return response.status

        assert await eventually(is_reviewed) == status

    await expect_status({}, 401)
    await expect_status({"Authorization": "Bearer nonsense"}, 401)
    await expect_status({"Authorization": f"Bearer {token}"}, 403)
    await expect_status(world.scrape_headers(), 200)
