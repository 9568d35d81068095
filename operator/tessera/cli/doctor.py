"""`tessera doctor`: what is wrong in the cluster, and how to mend it."""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence

from tessera.adapters.clock import now
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.cli.checks.control import kubernetes, resource_types, rights
from tessera.cli.checks.finding import Check, Finding, State, Ward
from tessera.cli.checks.hardware import gpu_nodes, pools
from tessera.cli.checks.metrics import pod_monitors, prometheus
from tessera.cli.checks.mig import layouts
from tessera.cli.checks.operator import operator, webhook
from tessera.cli.checks.services import budgets, pods, services
from tessera.cli.cluster import reach
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.fleet import prometheus_of
from tessera.cli.snapshot_file import tessera_version
from tessera.cli.told import Told

CHECKS: tuple[Check, ...] = (
    kubernetes,
    rights,
    resource_types,
    operator,
    webhook,
    pools,
    gpu_nodes,
    layouts,
    pod_monitors,
    prometheus,
    budgets,
    services,
    pods,
)


def run(arguments: argparse.Namespace) -> Told:
    """All findings; the exit code is 1 when one of them is a problem."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> Told:
    async with reach(arguments) as reader:
        ward = Ward(
            reader=reader,
            at=now(),
            version=tessera_version(),
            prometheus=prometheus_of(arguments),
            series=lambda url: PrometheusMetrics(url, now),
        )
        found = await examine(ward)
    bad = any(one.state is State.PROBLEM for one in found)
    text = as_json(found) if arguments.output == "json" else "\n".join(lines(found)) + "\n"
    return Told(text, code=int(bad))


async def examine(ward: Ward) -> Sequence[Finding]:
    """Every check once; nothing else is asked while the API server does not answer."""
    try:
        await ward.reader.get("/version")
    except CommandError as error:
        return [Finding("kubernetes", State.PROBLEM, str(error))]
    found = await asyncio.gather(*(_attempted(check, ward) for check in CHECKS))
    return [finding for findings in found for finding in findings]


async def _attempted(check: Check, ward: Ward) -> Sequence[Finding]:
    """What may not be read is no failure."""
    name = check.__name__.replace("_", " ")
    try:
        return await check(ward)
    except DeniedError as error:
        return [Finding(name, State.SKIPPED, str(error))]
    except CommandError as error:
        return [Finding(name, State.PROBLEM, str(error))]


_SIGNS = {State.OK: "ok", State.WARNING: "WARN", State.PROBLEM: "FAIL", State.SKIPPED: "skip"}


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """A line for each finding, and one with its mend."""
    width = min(32, max(len(one.check) for one in found))
    for one in found:
        told = " ".join(one.found.split())
        yield f"{_SIGNS[one.state].ljust(4)}  {one.check.ljust(width)}  {told}"
        if one.mend:
            yield f"{'':{width + 8}}-> {one.mend}"
    counts = Counter(one.state for one in found)
    yield ""
    yield (
        f"problems: {counts[State.PROBLEM]}, warnings: {counts[State.WARNING]}, "
        f"skipped: {counts[State.SKIPPED]}, fine: {counts[State.OK]}"
    )


def as_json(found: Sequence[Finding]) -> str:
    """The same for programs."""
    counts = Counter(one.state for one in found)
    body = {
        "findings": [
            {"check": one.check, "state": one.state, "found": one.found, "mend": one.mend or None}
            for one in found
        ],
        "counts": {state.value: counts[state] for state in State},
    }
    return json.dumps(body, indent=2) + "\n"
