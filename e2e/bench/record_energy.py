"""`make record-energy`: a day of GPUs in five minutes of a world, as the operator metered it.

Slices and whole GPUs, under load and idle, a driver that is loaded again, a service that moves, and
nodes whose GPUs are partitioned anew. Writes what `tests/domain/cost/test_energy_day.py` reads.
"""

import argparse
import asyncio
import json
import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import world as worlds
from bench.recorded_course import RecordedCycle
from bench.recorded_energy import RecordedEnergy, write_energy
from demo.cluster import ROOT, InstalledCluster, Json, install
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace, a_budget
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.domain.observed.snapshot import Readings, Snapshot
from world import World
from world.api import connect
from world.plan import FEW_FAKES
from world.testing import eventually

RECORD = ROOT / "tests" / "domain" / "billing" / "data" / "energy_day.json.xz"
NAMESPACE = "day"
SLICES, WHOLE = "slices", "whole"
_PRODUCTS = {SLICES: "NVIDIA-A100-SXM4-80GB", WHOLE: "NVIDIA-H100-80GB-HBM3"}
_LAYOUT = {"2g.20gb": 3, "1g.10gb": 1}
_SECONDS = 330.0
# After the last load, so that Prometheus has scraped all of it.
_REST_SECONDS = 35.0
_COUNTERS = 'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID!=""}[15m]'
_JOULES = "sum by (source, split, state) (tessera_energy_joules_total)"


@dataclass(frozen=True, slots=True)
class _Load:
    """Clients of one service, from and until some second."""

    service: str
    begin: float
    end: float
    clients: int


_LOADS = (
    _Load("chat", 30, 100, 4),
    _Load("large", 30, 150, 6),
    _Load("moves", 60, 130, 2),
    _Load("chat", 240, 300, 8),
)
_RESTART_AT, _MOVE_AT, _PARTITION_AT = 90.0, 150.0, 165.0


def main() -> None:
    """Play, and write the file."""
    parser = argparse.ArgumentParser(prog="record-energy")
    parser.add_argument("--out", type=Path, default=RECORD, help="the file to write")
    options = parser.parse_args()
    # Not below /tmp, where the operator has a volume of its own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        folder = Path(temporary)
        with worlds.start(fleet=_write_fleet(folder), progress=print) as world:
            file = folder / "cycles.pickle"
            counters, joules = asyncio.run(_play(world, file))
        snapshots = _snapshots(file)
    write_energy(
        options.out,
        RecordedEnergy(
            source="make record-energy: simulated engines and exporters behind a real API server, "
            "Prometheus and operator",
            counters=counters,
            joules=joules,
            cycles=[RecordedCycle(snapshot=each, decisions={}) for each in snapshots],
        ),
    )
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB, {len(snapshots)} rounds")


def _snapshots(path: Path) -> Sequence[Snapshot]:
    """Return what the meter reads of each cycle that had new readings of GPUs."""
    snapshots: list[Snapshot] = []
    last = None
    with path.open("rb") as file:
        while file.peek(1):
            seen, _ = pickle.load(file)  # noqa: S301 - the recording operator wrote it
            readings = seen.readings
            if readings is None or readings.energy is None or readings.energy.at == last:
                continue
            last = readings.energy.at
            read = Readings(at=readings.at, pods=readings.pods, energy=readings.energy)
            snapshots.append(
                Snapshot(
                    at=seen.at, pools=seen.pools, nodes=seen.nodes, pods=seen.pods, readings=read
                )
            )
    return snapshots


def _write_fleet(folder: Path) -> Path:
    nodes = [
        {"name": "control", "kind": "cpu"},
        {"name": SLICES, "count": 2, "gpus": [["1g.10gb"] * 7], "product": _PRODUCTS[SLICES]},
        {"name": WHOLE, "gpus": ["whole", "whole"], "product": _PRODUCTS[WHOLE]},
        # A world of many nodes scrapes each 15 seconds.
        {
            "name": "idle",
            "kind": "kwok",
            "count": FEW_FAKES + 1,
            "taints": [{"key": "example.com/idle"}],
        },
    ]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    return path


async def _play(
    world: World, file: Path
) -> tuple[Mapping[str, Sequence[tuple[float, int]]], Sequence[tuple[str, str, str, float]]]:
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, print)
        await install(
            cluster,
            "mig.enabled=true",
            "mig.managerNamespace=gpu-operator",
            "image.repository=tessera/operator-recording",
            f"extraEnv[0].name=RECORD_FILE,extraEnv[0].value={file}",
        )
        for name, product in _PRODUCTS.items():
            await api.apply(ACCELERATOR_POOLS.path(None, name), _pool(name, product), "kubectl")
        await api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        namespace = ScenarioNamespace(cluster, NAMESPACE)
        async with a_budget(namespace, "100000"):
            scaling = {"minReplicas": 1, "maxReplicas": 2}
            for service, pool in (("chat", SLICES), ("large", WHOLE), ("moves", WHOLE)):
                await namespace.apply_service(service, scaling=scaling, placement={"pools": [pool]})
            for service in ("chat", "large", "moves"):
                await namespace.wait_until_ready(service, within=180)
            async with asyncio.TaskGroup() as tasks:
                for load in _LOADS:
                    tasks.create_task(_run(namespace, load))
                tasks.create_task(_change(namespace, scaling))
                tasks.create_task(asyncio.sleep(_SECONDS))
            await asyncio.sleep(_REST_SECONDS)
        samples = await namespace.query_prometheus(_COUNTERS)
        rows = await namespace.query_prometheus(_JOULES)
    return (
        _by_uuid(samples),
        sorted(
            (
                *(row["metric"][name] for name in ("source", "split", "state")),
                float(row["value"][1]),
            )
            for row in rows
        ),
    )


def _by_uuid(samples: Sequence[Json]) -> Mapping[str, Sequence[tuple[float, int]]]:
    """Return the counter of each GPU by the time of its scrape, whichever series had it."""
    counters: dict[str, dict[float, int]] = {}
    for series in samples:
        values = counters.setdefault(series["metric"]["UUID"], {})
        values |= {at: int(float(value)) for at, value in series["values"]}
    return {uuid: sorted(values.items()) for uuid, values in sorted(counters.items())}


def _pool(name: str, product: str) -> Json:
    return {
        "apiVersion": ACCELERATOR_POOLS.api_version,
        "kind": ACCELERATOR_POOLS.kind,
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"nvidia.com/gpu.product": product},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": "2.00"}],
            "energy": {
                "electricityPerKWh": [{"value": "0.20"}],
                "gramsCO2PerKWh": [{"value": "300"}],
                "source": "an example",
                "date": "2026-11-01",
            },
        },
    }


async def _run(namespace: ScenarioNamespace, load: _Load) -> None:
    await asyncio.sleep(load.begin)
    base = await namespace.cluster.address(namespace.ref(load.service))
    async with steady_load(base, load.service, clients=load.clients, tokens=60) as counts:
        await asyncio.sleep(load.end - load.begin)
    say = namespace.cluster.say
    say(f"{load.service}: {counts.finished} requests, {len(counts.failures)} failures")


async def _change(namespace: ScenarioNamespace, scaling: Mapping[str, int]) -> None:
    cluster, begin = namespace.cluster, time.monotonic()
    await asyncio.sleep(_RESTART_AT)
    cluster.world.restart_driver(WHOLE)
    cluster.say("the driver of the whole GPUs was loaded again")
    await asyncio.sleep(begin + _MOVE_AT - time.monotonic())
    await namespace.apply_service("moves", scaling=scaling, placement={"pools": [SLICES]})
    await asyncio.sleep(begin + _PARTITION_AT - time.monotonic())
    mig = {"mode": "Static", "layout": _LAYOUT}
    await cluster.api.patch(ACCELERATOR_POOLS.path(None, SLICES), {"spec": {"mig": mig}})

    async def is_partitioned() -> None:
        nodes = (await cluster.api.get("/api/v1/nodes"))["items"]
        offered = [
            int(node["status"].get("allocatable", {}).get("nvidia.com/mig-2g.20gb", 0))
            for node in nodes
        ]
        assert sum(offered) >= 3, offered

    await eventually(is_partitioned, within=180)
    cluster.say(f"a node was partitioned after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
