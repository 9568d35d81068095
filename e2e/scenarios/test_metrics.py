"""The real Prometheus: what the operator asks it, and what it exports itself."""

from dataclasses import fields
from datetime import timedelta
from functools import partial

from demo.load import steady_load
from demo.stage import NAMESPACE, Json
from scenarios.actions import Place
from scenarios.commands import tessera
from tessera.adapters.clock import now
from tessera.adapters.engine_client import HttpEngines
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.domain.observed.snapshot import PodReading, Readings, Ref
from tessera.resources.api_resources import PODS
from world.testing import eventually


async def test_every_reading_of_a_loaded_replica_comes_through(place: Place) -> None:
    ref = await place.serve(replicas=1)
    await place.until_ready()
    (pod,) = await place.all(PODS)
    asked = Ref(place.namespace, pod["metadata"]["name"])
    metrics = PrometheusMetrics(place.stage.world.prometheus_url, now)
    async with steady_load(await place.stage.address(ref), ref.name, clients=60, tokens=100):

        async def read() -> PodReading:
            return (await metrics.read()).pods.get(asked, PodReading())

        def loaded(one: PodReading) -> bool:
            known = (one.waiting, one.running, one.activity)
            return all(known) and one.activity is not None and one.activity > 0.5

        reading = await eventually(read, loaded)

        async def longest_queue() -> float:
            past = await metrics.load_history(timedelta(seconds=30))
            loads = past.get(Ref(place.namespace, "chat"), ())
            return max((load.waiting or 0 for load in loads), default=0)

        async def finished() -> float:
            return (await metrics.read()).finished.get(Ref(place.namespace, "chat"), 0)

        await eventually(longest_queue, lambda waiting: waiting > 0)
        await eventually(finished, lambda requests: requests > 0)
    assert 0 < (reading.running or 0) <= (await place.status())["variant"]["maxNumSeqs"]


async def test_the_speed_of_a_loaded_replica_is_told_beside_the_predicted_one(
    place: Place,
) -> None:
    ref = await place.serve(replicas=1)
    await place.until_ready()
    metrics, who = (
        PrometheusMetrics(place.stage.world.prometheus_url, now),
        Ref(place.namespace, "chat"),
    )
    async with steady_load(await place.stage.address(ref), ref.name, clients=12, tokens=40):

        async def told() -> Json | None:
            return (await place.status()).get("speed")

        speed = await eventually(told, lambda found: found is not None, within=150)
        reading = (await metrics.read()).speeds[who][0]
        told_now = await tessera(
            place.stage,
            *("explain", "chat", "-n", place.namespace),
            *("--prometheus", place.stage.world.prometheus_url),
        )
    assert speed is not None
    variant, gap = (await place.status())["variant"], speed["itlMs"]
    about = told_now.output.partition("\nSPEED: ")[2].partition("\n\n")[0]
    for part in (
        "output tok/s",
        "mean batch size",
        "MFU and MBU",
        "reported by the engine",
    ):
        assert part in about
    print(about)
    # The look-alike steps by the same model of speed; what it adds is the machine's own delay.
    assert 0.8 < float(gap["measured"]) / float(gap["predicted"]) < 2
    assert speed["requests"] >= 100
    assert (reading.variant, reading.requests is not None) == (variant["name"], True)
    missing = [one.name for one in fields(reading) if getattr(reading, one.name) is None]
    assert missing == []
    assert abs((reading.kv_tokens or 0) / variant["kvCacheTokens"] - 1) < 0.01
    condition = await place.until_known("chat", "SpeedAsPredicted")
    assert condition["reason"] == speed["reason"]
    table = await place.stage.run("kubectl", "--namespace", place.namespace, "get", "tsvc")
    assert gap["predicted"] in table
    assert gap["measured"] in table
    own = f'{{exported_namespace="{place.namespace}",service="chat",kind="measured"}} > 0'
    for name in ("output_tokens_per_second", "itl_seconds", "cost_per_million_tokens"):
        await eventually(partial(place.asked, f"tessera_service_{name}{own}"), bool)


async def test_a_prometheus_that_is_away_is_a_reading_with_a_problem() -> None:
    readings = await PrometheusMetrics("http://127.0.0.1:9", now).read()
    assert isinstance(readings, Readings)
    assert "Prometheus at http://127.0.0.1:9: ConnectionError" in (readings.problem or "")


async def test_an_engine_is_asked_for_a_token_and_for_its_load(place: Place) -> None:
    ref = await place.serve(replicas=1)
    await place.until_ready()
    engines = HttpEngines()
    try:
        base = await place.stage.address(ref)
        assert await engines.probe(base, ref.name) is None
        assert "404" in str(await engines.probe(base, "another"))
        assert "Cannot connect" in str(await engines.probe("http://127.0.0.1:9", ref.name))
        assert await engines.in_flight(base.removeprefix("http://")) == 0
        assert await engines.in_flight("127.0.0.1:9") is None
    finally:
        await engines.close()


async def test_the_operator_exports_its_own_metrics(place: Place) -> None:
    await place.serve(replicas=1)
    await place.until_ready()
    where = f'namespace="{NAMESPACE}"'
    assert await eventually(partial(place.asked, f"tessera_leader{{{where}}} == 1"), bool)
    ready = f'tessera_service_ready_replicas{{exported_namespace="{place.namespace}"}} == 1'
    assert await eventually(partial(place.asked, ready), bool)
    assert await place.asked(f"tessera_reconcile_duration_seconds_count{{{where}}}")
