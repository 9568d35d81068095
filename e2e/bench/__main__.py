"""`make bench-control`: the operator on 2,000 services, beside a client that decides nothing.

The last line is `BENCH {json}`; what the last committed figures were is printed beside it.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import world as worlds
from bench.audit import Audit
from bench.bare_client import apply_all, children, edit_all
from bench.control import ControlPlaneBench, Times
from bench.fleet import ALONE, Size, fleet_file, percentile_ms, pool
from demo.cluster import ROOT, InstalledCluster
from figures import benchmark
from tessera.api.schema import crd
from tessera.domain.kinds.kinds import KINDS
from world import World
from world.api import connect

COMMITTED = ROOT / "docs" / "figures" / "control.json"
# What each figure must not exceed.
GOALS: dict[str, float] = {
    "applied_vs_bare": 1.1,
    "requests_per_service": 6.5,
    "operator_cpu_ms_per_service": 15,
    "edit_p99_ms": 1000,
    "edit_alone_ms": 150,
    "idle_core_share": 0.01,
    "steady_writes": 0,
    "moving_status_writes_per_service_30s": 1,
    "rss_mib": 300,
    "cold_sync_s": 20,
    "turn_cpu_ms_unchanged": 50,
    "loop_lag_p99_ms": 200,
}


def measure(
    *,
    nodes: int = 250,
    services: int = 2000,
    edits: int = 600,
    quiet: float = 60.0,
    moving: float = 120.0,
    save: bool = False,
) -> dict[str, Any]:
    """Measure, and print the table."""
    # An edit of a service that was edited before changes nothing.
    if edits > services - ALONE:
        sys.exit(f"--edits: at most {services - ALONE} of {services} services")
    size = Size(nodes=nodes, services=services)
    times = Times(edits=edits, quiet=quiet, moving=moving)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        fleet = fleet_file(Path(folder), size)
        with worlds.start(fleet=fleet, progress=say) as world:
            bare, bare_edits = asyncio.run(_bare(world, size, times))
        say(f"the bare client took {bare:.1f} s")
        with worlds.start(fleet=fleet, progress=say) as world:
            figures = asyncio.run(_operator(world, size, times, bare, say))
    figures |= bare_edits | {"services": size.services, "nodes": size.nodes}
    _table(figures)
    if save:
        COMMITTED.parent.mkdir(exist_ok=True)
        COMMITTED.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


async def _bare(world: World, size: Size, times: Times) -> tuple[float, dict[str, int]]:
    """Return the seconds of a client that decides nothing, and what its edits took."""
    async with connect(world.kubeconfig) as api:
        for kind in KINDS:
            await api.apply_manifest(crd(kind))
        await _known(InstalledCluster(world, api, print))
        await api.apply_manifest(pool())
        for name in size.namespaces:
            await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        nodes = (await api.get("/api/v1/nodes"))["items"]
        manifests = children(size, nodes)
        seconds = await apply_all(api, size, manifests)
        edits = await edit_all(api, size, times.edits, manifests)
    return seconds, {
        "bare_edit_p50_ms": percentile_ms(edits, 0.5),
        "bare_edit_p99_ms": percentile_ms(edits, 0.99),
    }


async def _known(cluster: InstalledCluster) -> None:
    for kind in KINDS:
        while not await cluster.api.exists(f"/apis/tessera.dev/v1alpha1/{kind.plural}"):
            await asyncio.sleep(0.2)


async def _operator(
    world: World, size: Size, times: Times, bare: float, say: Any
) -> dict[str, Any]:
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, say)
        return await ControlPlaneBench(cluster, size, times, Audit(world.audit_log)).run(bare)


def _table(figures: dict[str, Any]) -> None:
    last = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    print(f"{'figure':38} {'now':>10} {'goal':>8} {'last':>10}  change")
    for name, value in figures.items():
        goal, before = GOALS.get(name), last.get(name)
        verdict = "" if goal is None or value <= goal else "  MISSED"
        change = f"{value / before - 1:+.0%}" if before else ""
        print(
            f"{name:38} {value:>10} {'' if goal is None else goal:>8} "
            f"{'' if before is None else before:>10}  {change}{verdict}"
        )


if __name__ == "__main__":
    benchmark(
        measure,
        short={"nodes": 2, "services": 5, "edits": 2, "quiet": 2.0, "moving": 2.0},
        quiet={"help": "seconds in which nothing happens"},
        moving={"help": "seconds in which gauges move"},
        save={"help": "make these the committed figures"},
    )
