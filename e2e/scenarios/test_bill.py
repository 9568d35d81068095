"""The bill of a real fleet, from the real Prometheus."""

import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial

import httpx
import pytest
import yaml

from demo.cluster import CHART, EXAMPLES, InstalledCluster, Json, StepError
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from scenarios.kills import kill_operator
from tessera.adapters.clock import now
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.domain.money import price_on
from world.testing import eventually

# The GPUs of `e2e/demo/fleet.yaml`, by pool.
GPUS = {"a100-reserved": 1, "a100-spot": 2, "h100-ondemand": 2}
# Seconds: while nothing changes the first reconcile after 15 s charges, and is scraped then.
BILLED_WITHIN = 90
VARIABLES = {"$__rate_interval": "20s", "$__range": "60s", "$currency": "USD", "$pool": ".*"}


async def wait_for_bill(cluster: InstalledCluster) -> datetime:
    """Wait for a reconcile that charges, and its scrape; return until when it charged."""
    metrics, started_at = PrometheusMetrics(cluster.world.prometheus_url, now), now()

    async def is_charged() -> datetime:
        charged_until = await metrics.billed_until()
        assert charged_until is not None
        assert charged_until > started_at
        return charged_until

    return await eventually(is_charged, within=BILLED_WITHIN)


async def read_bill(cluster: InstalledCluster, *arguments: str) -> Json:
    """Run `tessera cost` as a user does; return its JSON.

    A wait does not repeat a command that fails.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.cli.main", "cost", "-o", "json"),
        *("--prometheus", cluster.world.prometheus_url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise StepError(errors.decode())
    bill: Json = json.loads(output)
    return bill


def nodes_cost(bill: Json) -> Fraction:
    """Return price x GPUs x time, for the time that a bill names, in nano-units."""
    begin, end = (datetime.fromisoformat(bill[key]) for key in ("from", "to"))
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


def total(bill: Json) -> int:
    return sum(nanos(row["total"]) for row in bill["totals"])


def find_row(bill: Json, name: str) -> Json:
    row: Json = next((row for row in bill["rows"] if row["name"] == name), {})
    return row


def fill_variables(query: str) -> str:
    """Fill in the variables of a query, as Grafana does."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


async def read_charges_by_state(
    cluster: InstalledCluster, name: str, *since: str
) -> Mapping[str, int]:
    """Return the charges of a service, by state."""
    fields = find_row(await read_bill(cluster, *since), name)
    states = ("serving", "warmIdle", "loading")
    return {state: nanos(fields.get(state, "0")) for state in states}


@pytest.mark.full
async def test_the_bill_of_a_fleet_is_what_its_nodes_cost_and_survives_a_killed_operator(
    namespace: ScenarioNamespace,
) -> None:
    cluster, name = namespace.cluster, f"{namespace.name}/chat"
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    since = ("--since", (await wait_for_bill(cluster)).isoformat())

    async def is_charged(state: str) -> None:
        # Starts a command for each further bill alone.
        await wait_for_bill(cluster)
        assert (await read_charges_by_state(cluster, name, *since))[state] > 0

    await eventually(partial(is_charged, "warmIdle"), within=2 * BILLED_WITHIN)
    async with steady_load(await cluster.address(ref), ref.name, clients=20, tokens=100):
        await eventually(partial(is_charged, "serving"), within=2 * BILLED_WITHIN)
    bill_before = await read_bill(cluster, *since)
    await kill_operator(cluster)

    async def bill_goes_on() -> Json:
        await wait_for_bill(cluster)
        bill = await read_bill(cluster, *since)
        assert bill["to"] > bill_before["to"]
        return bill

    bill = await eventually(bill_goes_on, within=2 * BILLED_WITHIN)
    assert bill["gaps"] == []
    assert bill["from"] == bill_before["from"]
    for by in ("service", "tenant", "pool"):
        bill = await read_bill(cluster, *since, "--by", by)
        # Two readings of each of two processes are subtracted, each rounded down in each pool.
        assert abs(nodes_cost(bill) - total(bill)) < 2 * len(GPUS)
    assert {row["name"] for row in bill["rows"]} == set(GPUS)


async def test_a_new_operator_finds_until_when_costs_were_charged(
    cluster: InstalledCluster,
) -> None:
    async def is_charged_lately() -> None:
        charged_until = await wait_for_bill(cluster)
        assert timedelta(0) < now() - charged_until < timedelta(seconds=30)

    await eventually(is_charged_lately, within=2 * BILLED_WITHIN)


async def test_every_query_of_the_dashboard_is_answered(namespace: ScenarioNamespace) -> None:
    """Prometheus accepts all of them, and those of the bill have data.

    There is no budget here, no partitioned pool and no node on demand: those queries may be empty.
    """
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    dashboard = json.loads((CHART / "dashboards" / "cost.json").read_text(encoding="utf-8"))
    queries = [
        (panel["title"], fill_variables(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    url = f"{namespace.cluster.world.prometheus_url}/api/v1/query"
    async with httpx.AsyncClient(timeout=60) as http:

        async def are_answered() -> None:
            empty = {}
            for title, query in queries:
                response = (await http.get(url, params={"query": query})).json()
                if response["status"] != "success":
                    raise StepError(f"{title}: {response.get('error')}: {query}")
                if not response["data"]["result"] and not may_be_empty(title):
                    empty[query] = title
            assert empty == {}

        await eventually(are_answered, within=BILLED_WITHIN)


def may_be_empty(title: str) -> bool:
    return "Budget" in title or title.startswith(("MIG: ", "Slices, ", "On-demand "))


async def test_the_chart_renders_the_dashboard_for_the_sidecar(cluster: InstalledCluster) -> None:
    text = await cluster.run(
        *("helm", "template", "tessera", str(CHART), "--show-only", "templates/dashboard.yaml"),
        *("--set", "dashboard.enabled=true", "--set", "dashboard.labels.team=ml"),
    )
    (manifest,) = yaml.safe_load_all(text)
    assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert manifest["metadata"]["labels"]["team"] == "ml"
    dashboard = (CHART / "dashboards" / "cost.json").read_text(encoding="utf-8")
    assert json.loads(manifest["data"]["cost.json"]) == json.loads(dashboard)
