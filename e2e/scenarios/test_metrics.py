"""The real Prometheus: what the operator queries, and what it exports itself."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import partial

import aiohttp
import pytest

from demo.cluster import NAMESPACE, Json
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from scenarios.commands import run_tessera
from tessera.adapters.clock import now
from tessera.adapters.engine_client import HttpEngines
from tessera.adapters.prometheus.load import read_load
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.observed.snapshot import PodReading, Readings, Ref, TokenRates
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
    metrics = PrometheusMetrics(namespace.cluster.world.prometheus_url, now)
    async with steady_load(await namespace.cluster.address(ref), ref.name, clients=60, tokens=100):

        async def read_pod() -> PodReading:
            return (await metrics.read()).pods.get(pod_ref, PodReading())

        def is_loaded(reading: PodReading) -> bool:
            known = (reading.waiting, reading.running, reading.activity)
            return all(known) and reading.activity is not None and reading.activity > 0.5

        reading = await eventually(read_pod, is_loaded)

        async def read_longest_queue() -> float:
            history = await metrics.load_history(timedelta(seconds=30))
            loads = history.get(Ref(namespace.name, "chat"), ())
            return max((load.waiting or 0 for load in loads), default=0)

        async def read_finished() -> float:
            return (await metrics.read()).finished.get(Ref(namespace.name, "chat"), 0)

        await eventually(read_longest_queue, lambda waiting: waiting > 0)
        await eventually(read_finished, lambda requests: requests > 0)

        async def read_token_rates() -> TokenRates | None:
            return (await metrics.read()).token_rates.get(Ref(namespace.name, "chat"))

        rates = await eventually(
            read_token_rates, lambda rates: rates is not None and rates.prompt > 0
        )
        assert rates is not None
        assert rates.output > 0

        async def read_curve() -> LoadCurve | None:
            return await read_load(metrics, Ref(namespace.name, "chat"), now())

        curve = await eventually(read_curve, lambda curve: curve is not None)
        assert curve is not None
        assert curve.peak == 1
    assert 0 < (reading.running or 0) <= (await namespace.service_status())["variant"]["maxNumSeqs"]


@pytest.mark.full
async def test_the_speed_of_a_loaded_replica_is_reported_beside_the_predicted_speed(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    metrics = PrometheusMetrics(namespace.cluster.world.prometheus_url, now)
    service_ref = Ref(namespace.name, "chat")
    async with steady_load(await namespace.cluster.address(ref), ref.name, clients=12, tokens=40):

        async def read_speed() -> Json | None:
            return (await namespace.service_status()).get("speed")

        speed = await eventually(read_speed, lambda speed: speed is not None, within=150)
        reading = (await metrics.read()).speeds[service_ref][0]
        result = await run_tessera(
            namespace.cluster,
            *("explain", "chat", "-n", namespace.name),
            *("--prometheus", namespace.cluster.world.prometheus_url),
        )
    assert speed is not None
    variant, itl = (await namespace.service_status())["variant"], speed["itlMs"]
    explanation = result.output.partition("\nSPEED: ")[2].partition("\n\n")[0]
    for part in (
        "output tok/s",
        "mean batch size",
        "MFU and MBU",
        "reported by the engine",
    ):
        assert part in explanation
    print(explanation)
    # The simulator steps by the same model of speed; the machine adds its own delay.
    assert 0.8 < float(itl["measured"]) / float(itl["predicted"]) < 2
    assert speed["requests"] >= 100
    assert (reading.variant, reading.requests is not None) == (variant["name"], True)
    missing = [field.name for field in fields(reading) if getattr(reading, field.name) is None]
    assert missing == []
    assert abs((reading.kv_tokens or 0) / variant["kvCacheTokens"] - 1) < 0.01
    condition = await namespace.wait_for_known_condition("chat", "SpeedAsPredicted")
    assert condition["reason"] == speed["reason"]
    table = await namespace.cluster.run("kubectl", "--namespace", namespace.name, "get", "tsvc")
    assert itl["predicted"] in table
    assert itl["measured"] in table
    selector = f'{{exported_namespace="{namespace.name}",service="chat",kind="measured"}} > 0'
    for name in ("output_tokens_per_second", "itl_seconds", "cost_per_million_tokens"):
        await eventually(
            partial(namespace.query_prometheus, f"tessera_service_{name}{selector}"), bool
        )


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
    assert await eventually(
        partial(namespace.query_prometheus, f"tessera_leader{{{selector}}} == 1"), bool
    )
    query = f'tessera_service_ready_replicas{{exported_namespace="{namespace.name}"}} == 1'
    assert await eventually(partial(namespace.query_prometheus, query), bool)
    assert await namespace.query_prometheus(
        f"tessera_reconcile_duration_seconds_count{{{selector}}}"
    )


async def test_the_operator_shows_its_metrics_only_to_readers_of_that_path(
    namespace: ScenarioNamespace,
) -> None:
    world = namespace.cluster.world
    addresses = [pod.address for pod in world.containers() if pod.container == "operator"]
    account = SERVICE_ACCOUNTS.path(namespace.name, "default")
    await eventually(partial(namespace.cluster.api.exists, account), bool, within=60)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await namespace.cluster.api.create(f"{account}/token", request))["status"]["token"]

    async def read_status(headers: Mapping[str, str]) -> int:
        url = f"https://{addresses[0]}:8080/metrics"
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(url, ssl=False) as response,
        ):
            return response.status

    async def expect_status(headers: Mapping[str, str], status: int) -> None:
        # Right after another refusal an unknown token waits for its review.
        assert (
            await eventually(partial(read_status, headers), lambda answer: answer != 429) == status
        )

    await expect_status({}, 401)
    await expect_status({"Authorization": "Bearer nonsense"}, 401)
    await expect_status({"Authorization": f"Bearer {token}"}, 403)
    await expect_status(world.scrape_headers(), 200)
