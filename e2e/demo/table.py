"""Step 4: where everything runs, what it gives, what it costs, and why there."""

import asyncio
import contextlib
import json
import textwrap
import urllib.parse
import urllib.request
from functools import partial

from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.load import LoadCounts, steady_load

COLUMNS = (
    "service",
    "where",
    "replicas",
    "expected tok/s",
    "measured tok/s",
    "$/h",
    "$/Mtok",
    "why this hardware",
)
MEASURED = "sum by (namespace, tessera_dev_service) (rate(vllm:generation_tokens_total[5s]))"
_PROMPT_TOKENS, _ANSWER_TOKENS = 1200, 250
# Of the requests that replicas work on at a time; more would make the autoscaler act.
_FILLED = 0.9
# Two answers long, so that prompts and answers are mixed as in a steady state.
_LOAD_SECONDS = 12.0
# Prometheus on a busy machine scrapes late.
_MEASURED_WITHIN = 120.0
_WHY_WIDTH = 60


async def run(cluster: InstalledCluster) -> None:
    """Load every service as its expected speed assumes, and print the table: no cell is empty."""
    services = await cluster.services()
    cluster.say(
        f"every service gets {_FILLED:.0%} of the load that its price assumes, "
        f"for {_LOAD_SECONDS:.0f} s"
    )
    async with contextlib.AsyncExitStack() as loads:
        for ref, service in services:
            await loads.enter_async_context(await _assumed_load(cluster, ref, service))
        await asyncio.sleep(_LOAD_SECONDS)
        measured = await until(
            partial(_measured_rates, cluster),
            lambda rates: all(rates.get(ref) for ref, _ in services),
            "every service has a measured rate",
            _MEASURED_WITHIN,
        )
    rows = [
        await _row(cluster, ref, service, measured) for ref, service in await cluster.services()
    ]
    for row in rows:
        empty = [name for name, cell in zip(COLUMNS, row, strict=True) if not cell]
        if empty:
            raise StepError(f"{row[0]} has empty cells: {', '.join(empty)}")
    cluster.say("\n" + _format_table(rows))


async def _assumed_load(
    cluster: InstalledCluster, ref: Ref, service: Json
) -> contextlib.AbstractAsyncContextManager[LoadCounts]:
    status = service["status"]
    return steady_load(
        await cluster.address(ref),
        service["spec"]["model"].get("servedName", ref.name),
        clients=int(_FILLED * status["variant"]["maxNumSeqs"] * status["readyReplicas"]),
        tokens=_ANSWER_TOKENS,
        prompt_tokens=_PROMPT_TOKENS,
    )


async def _row(
    cluster: InstalledCluster, ref: Ref, service: Json, measured: dict[Ref, float]
) -> tuple[str, ...]:
    status = service["status"]
    variant, cost = status.get("variant", {}), status.get("cost", {})
    form = variant.get("profile") or f"{variant.get('gpus')} whole GPUs"
    return (
        str(ref),
        f"{', '.join(await _nodes(cluster, ref))}: {form}",
        str(status.get("readyReplicas", "")),
        str(variant["tokensPerSecond"] * status["readyReplicas"] if variant else ""),
        f"{measured[ref]:.0f}" if measured.get(ref) else "",
        cost.get("perHour", ""),
        cost.get("perMillionTokens", ""),
        condition(service, "Placed").get("message", ""),
    )


async def _nodes(cluster: InstalledCluster, ref: Ref) -> list[str]:
    path = f"/api/v1/namespaces/{ref.namespace}/pods"
    pods = await cluster.api.get(path, labelSelector=f"tessera.dev/service={ref.name}")
    return sorted({pod["spec"].get("nodeName", "") for pod in pods["items"]})


async def _measured_rates(cluster: InstalledCluster) -> dict[Ref, float]:
    query = urllib.parse.urlencode({"query": MEASURED})
    url = f"{cluster.world.prometheus_url}/api/v1/query?{query}"

    def ask() -> Json:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own Prometheus
            body: Json = json.load(response)
            return body

    rows = (await asyncio.to_thread(ask))["data"]["result"]
    return {
        Ref(row["metric"]["namespace"], row["metric"]["tessera_dev_service"]): float(
            row["value"][1]
        )
        for row in rows
    }


def _format_table(rows: list[tuple[str, ...]]) -> str:
    """Columns side by side; the last one wraps."""
    head = COLUMNS[:-1]
    widths = [max(len(row[index]) for row in (COLUMNS, *rows)) for index in range(len(head))]
    lines = []
    for row in (COLUMNS, *rows):
        first, *rest = textwrap.wrap(row[-1], _WHY_WIDTH)
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        indent = " " * (sum(widths) + 2 * len(widths))
        lines += ["  ".join([*cells, first]), *(f"{indent}{line}" for line in rest)]
    return "\n".join(line.rstrip() for line in lines)
