"""The real Prometheus: what the operator asks it, and what it exports itself."""

from datetime import timedelta

import httpx

from demo.load import steady
from demo.stage import NAMESPACE, Json
from scenarios.actions import Place
from tessera.adapters.clock import now
from tessera.adapters.engines import HttpEngines
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.domain.snapshot import PodReading, Readings, Ref
from tessera.resources.kinds import PODS
from world.testing import eventually


async def test_every_reading_of_a_loaded_replica_comes_through(place: Place) -> None:
    ref = await place.serve(replicas=1)
    await place.until_ready()
    (pod,) = await place.all(PODS)
    asked = Ref(place.namespace, pod["metadata"]["name"])
    metrics = PrometheusMetrics(place.stage.world.prometheus_url, now)
    async with steady(await place.stage.address(ref), ref.name, clients=60, tokens=100):

        async def read() -> PodReading:
            return (await metrics.read()).pods.get(asked, PodReading())

        def loaded(one: PodReading) -> bool:
            known = (one.waiting, one.running, one.activity)
            return all(known) and one.activity is not None and one.activity > 0.5

        reading = await eventually(read, loaded)

        async def longest_queue() -> float:
            past = await metrics.past(timedelta(seconds=30))
            loads = past.get(Ref(place.namespace, "chat"), ())
            return max((load.waiting or 0 for load in loads), default=0)

        async def finished() -> float:
            return (await metrics.read()).finished.get(Ref(place.namespace, "chat"), 0)

        await eventually(longest_queue, lambda waiting: waiting > 0)
        await eventually(finished, lambda requests: requests > 0)
    assert 0 < (reading.running or 0) <= (await place.status())["variant"]["maxNumSeqs"]


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
        assert await engines.ask(base, ref.name) is None
        assert "404" in str(await engines.ask(base, "another"))
        assert "Cannot connect" in str(await engines.ask("http://127.0.0.1:9", ref.name))
        assert await engines.in_flight(base.removeprefix("http://")) == 0
        assert await engines.in_flight("127.0.0.1:9") is None
    finally:
        await engines.close()


async def test_the_operator_exports_its_own_metrics(place: Place) -> None:
    await place.serve(replicas=1)
    await place.until_ready()
    url = f"{place.stage.world.prometheus_url}/api/v1/query"

    async def value(query: str) -> list[Json]:
        async with httpx.AsyncClient() as http:
            answer = await http.get(url, params={"query": query})
        found: list[Json] = answer.json()["data"]["result"]
        return found

    where = f'namespace="{NAMESPACE}"'
    assert await eventually(lambda: value(f"tessera_leader{{{where}}} == 1"), bool)
    ready = f'tessera_service_ready_replicas{{exported_namespace="{place.namespace}"}} == 1'
    assert await eventually(lambda: value(ready), bool)
    assert await value(f"tessera_turn_seconds_count{{{where}}}")
