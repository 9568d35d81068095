"""The bill of a real fleet, asked of the real Prometheus."""

import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import httpx
import pytest
import yaml

from demo.load import steady_load
from demo.stage import CHART, EXAMPLES, Json, Stage
from scenarios.actions import Place
from scenarios.kills import kill_operator
from tessera.adapters.clock import now
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.domain.money import price_on
from world.testing import eventually

# What stands in `e2e/demo/fleet.yaml`.
GPUS = {"a100-reserved": 1, "a100-spot": 2, "h100-ondemand": 2}
# Seconds: while nothing changes it is charged at the first turn after 15 s, and then scraped.
BILLED_WITHIN = 40
VARIABLES = {"$__rate_interval": "20s", "$__range": "60s", "$currency": "USD", "$pool": ".*"}


async def billed_until(stage: Stage) -> datetime:
    """Until when was billed, at a scrape of a turn that is still to come."""
    metrics, begun = PrometheusMetrics(stage.world.prometheus_url, now), now()
    found = await eventually(
        metrics.billed_until,
        lambda told: told is not None and told > begun,
        within=BILLED_WITHIN,
    )
    assert found is not None
    return found


async def cost(stage: Stage, *arguments: str) -> Json:
    """`tessera cost` as a user runs it; its JSON."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.cli.main", "cost", "-o", "json"),
        *("--prometheus", stage.world.prometheus_url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, told = await process.communicate()
    assert process.returncode == 0, told.decode()
    found: Json = json.loads(output)
    return found


def nodes_cost(told: Json) -> Fraction:
    """Price x GPUs x time, for the time that a bill names, in nano-units."""
    begin, end = (datetime.fromisoformat(told[key]) for key in ("from", "to"))
    hours = Fraction((end - begin) // timedelta(microseconds=1), 3600 * 10**6)
    cost_of_an_hour = Fraction(0)
    for pool in yaml.safe_load_all((EXAMPLES / "00-pools.yaml").read_text(encoding="utf-8")):
        spec = AcceleratorPoolSpec.model_validate(pool["spec"])
        price = price_on(spec.prices, end.date())
        assert price is not None
        cost_of_an_hour += Fraction(price.per_gpu_hour) * GPUS[pool["metadata"]["name"]]
    return cost_of_an_hour * hours * 10**9


def nanos(amount: str) -> int:
    return int(Decimal(amount) * 10**9)


def total(told: Json) -> int:
    return sum(nanos(row["total"]) for row in told["totals"])


def row(told: Json, name: str) -> Json:
    found: Json = next((one for one in told["rows"] if one["name"] == name), {})
    return found


def filled(query: str) -> str:
    """A query as Grafana asks it."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


async def billed_states(stage: Stage, name: str, *since: str) -> Mapping[str, int]:
    """What a service has been billed, by state."""
    fields = row(await cost(stage, *since), name)
    states = ("serving", "warmIdle", "loading")
    return {state: nanos(fields.get(state, "0")) for state in states}


@pytest.mark.full
async def test_the_bill_of_a_fleet_is_what_its_nodes_cost_and_survives_a_killed_operator(
    place: Place,
) -> None:
    stage, name = place.stage, f"{place.namespace}/chat"
    ref = await place.serve(replicas=1)
    await place.until_ready()
    since = ("--since", (await billed_until(stage)).isoformat())
    await billed_until(stage)

    async def states() -> Mapping[str, int]:
        return await billed_states(stage, name, *since)

    await eventually(states, lambda found: found["warmIdle"] > 0, within=BILLED_WITHIN)
    async with steady_load(await stage.address(ref), ref.name, clients=20, tokens=100):
        await eventually(states, lambda found: found["serving"] > 0, within=BILLED_WITHIN)
    before = await cost(stage, *since)
    await kill_operator(stage)

    async def since_then() -> Json:
        return await cost(stage, *since)

    told = await eventually(since_then, lambda found: found["to"] > before["to"], within=60)
    assert told["gaps"] == []
    assert told["from"] == before["from"]
    for by in ("service", "tenant", "pool"):
        told = await cost(stage, *since, "--by", by)
        # Of each of two processes two looks are subtracted, each rounded down once in each pool.
        assert abs(nodes_cost(told) - total(told)) < 2 * len(GPUS)
    assert {one["name"] for one in told["rows"]} == set(GPUS)


async def test_an_operator_that_starts_finds_until_when_was_billed(stage: Stage) -> None:
    told = await billed_until(stage)
    assert timedelta(0) < now() - told < timedelta(seconds=30)


async def test_every_query_of_the_dashboard_is_answered(place: Place) -> None:
    """Prometheus takes all of them, and those of the bill have data.

    Nobody has a budget here, and no pool is cut: the show of that asks for its slices.
    """
    await place.serve(replicas=1)
    await place.until_ready()
    dashboard = json.loads((CHART / "dashboards" / "cost.json").read_text(encoding="utf-8"))
    asked = [
        (panel["title"], filled(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    url = f"{place.stage.world.prometheus_url}/api/v1/query"
    async with httpx.AsyncClient() as http:

        async def answers() -> dict[str, str]:
            """What every query came to, of those without data."""
            empty = {}
            for title, query in asked:
                answer = (await http.get(url, params={"query": query})).json()
                assert answer["status"] == "success", f"{title}: {answer.get('error')}: {query}"
                if not answer["data"]["result"]:
                    empty[query] = title
            return empty

        await eventually(answers, lambda empty: all(map(may_be_empty, empty.values())))


def may_be_empty(title: str) -> bool:
    return "Budget" in title or title.startswith(("MIG: ", "Slices, "))


async def test_the_chart_renders_the_dashboard_for_the_sidecar(stage: Stage) -> None:
    text = await stage.run(
        *("helm", "template", "tessera", str(CHART), "--show-only", "templates/dashboard.yaml"),
        *("--set", "dashboard.enabled=true", "--set", "dashboard.labels.team=ml"),
    )
    (rendered,) = yaml.safe_load_all(text)
    assert rendered["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert rendered["metadata"]["labels"]["team"] == "ml"
    shipped = (CHART / "dashboards" / "cost.json").read_text(encoding="utf-8")
    assert json.loads(rendered["data"]["cost.json"]) == json.loads(shipped)
