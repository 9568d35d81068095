"""GPUs with an unsuitable layout are repartitioned under running streams.

Services have a whole GPU per replica, on slices that fill one. The pool then plans its own
layouts; no service falls below its minReplicas, and no stream breaks.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import httpx

from demo import ready_replicas, streams
from demo.cluster import InstalledCluster, Json, Ref, StepError, all_ready, until
from demo.tenants import create_tenant

POOL, LABEL = "a100", "mig"
NAMESPACE = "team-mig"
Backend = Literal["MigManager", "Agent"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_POOL = f"/apis/tessera.dev/v1alpha1/acceleratorpools/{POOL}"
_MANAGERS = "gpu-operator"
_PRICE = "3.40"
_TOKENS = 120
_SCRAPES = 20
_MODELS = {
    "tiny": "meta-llama/Llama-3.2-1B-Instruct",
    "small": "meta-llama/Llama-3.2-3B-Instruct",
    "middle": "meta-llama/Llama-3.1-8B-Instruct",
    "large": "Qwen/Qwen2.5-14B-Instruct",
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes, and the replicas that services on them have at least, by size and number.

    All but a few GPUs are in use, so that some replicas have to leave before others get slices.
    """

    nodes: Path
    min_replicas: Mapping[str, int]

    @property
    def replicas(self) -> int:
        return sum(self.min_replicas.values())


def _min_replicas(**by_size: tuple[int, int]) -> dict[str, int]:
    """Return the replicas of each service, from how many there are of a size and its replicas."""
    return {
        f"{size}-{number}": replicas
        for size, (count, replicas) in by_size.items()
        for number in range(1, count + 1)
    }


_HERE = Path(__file__).parent
WHOLE = Fleet(
    _HERE / "mig.yaml", _min_replicas(tiny=(4, 2), small=(3, 3), middle=(3, 2), large=(2, 3))
)
SMALL = Fleet(
    _HERE / "mig-small.yaml", _min_replicas(tiny=(1, 2), small=(1, 2), middle=(1, 2), large=(1, 1))
)


def values(backend: Backend) -> tuple[str, ...]:
    """Return the chart's values: MIG permissions, and agents that partition or only observe."""
    return (
        "mig.enabled=true",
        f"mig.managerNamespace={_MANAGERS}",
        "node.enabled=true",
        f"node.partition={str(backend == 'Agent').lower()}",
        rf"node.nodeSelector.example\.org/pool={LABEL}",
    )


async def run(cluster: InstalledCluster, backend: Backend, fleet: Fleet) -> str:
    """Bring the fleet to its planned layout, and check streams and replicas meanwhile."""
    await _begin(cluster, fleet)
    bases = {name: await cluster.address(Ref(NAMESPACE, name)) for name in fleet.min_replicas}
    async with (
        streams.streaming(bases, tokens=_TOKENS) as results,
        ready_replicas.watch_minimum_ready(cluster, NAMESPACE) as minimum,
    ):
        await until(
            lambda: _is_scraped(cluster, results, fleet),
            bool,
            "every service was read under load",
            240,
        )
        await _draw(cluster)
        await cluster.api.patch(_POOL, {"spec": {"mig": {"mode": "Auto", "backend": backend}}})
        cluster.say(
            f"the pool plans its layouts; {backend} partitions, {len(bases)} clients stream"
        )
        cluster.notebook.mark("GPUs are repartitioned")
        gpus = await _follow_repartition(cluster, fleet)
        cluster.notebook.mark("layout as planned")
        await until(
            lambda: _used_slices(cluster),
            lambda seen: _are_replicas(seen, fleet),
            "Prometheus knows the slices in use",
            120,
        )
        await _draw(cluster)
    _check_results(results, minimum, fleet)
    return (
        f"{fleet.replicas} replicas that had a GPU each are on {gpus} GPUs now; {results.whole} "
        f"streams of {_TOKENS} tokens, none broke; {minimum.started} replicas started, and no "
        f"service was below {min(minimum.replicas.values())} Ready."
    )


async def _is_scraped(cluster: InstalledCluster, results: streams.Streams, fleet: Fleet) -> bool:
    """Prometheus scrapes every second, and a new replica has no load at first: an earlier plan
    would be made without measurements."""
    series = f'vllm:num_requests_running{{namespace="{NAMESPACE}"}}'
    query = f"count(count_over_time({series}[2m]) >= {_SCRAPES})"
    read = await _query(cluster, query) or 0
    return results.whole >= 10 * len(fleet.min_replicas) and read >= fleet.replicas


async def _begin(cluster: InstalledCluster, fleet: Fleet) -> None:
    await create_tenant(cluster, NAMESPACE)
    await _apply(cluster, "acceleratorpools", _pool())
    for name, replicas in fleet.min_replicas.items():
        manifest = _service(name, _MODELS[name.partition("-")[0]], replicas)
        await _apply(cluster, f"namespaces/{NAMESPACE}/inferenceservices", manifest)
    cluster.say(
        f"{len(fleet.min_replicas)} services, {fleet.replicas} replicas, each on a GPU of its own"
    )
    await all_ready(cluster, 180, NAMESPACE)


async def _apply(cluster: InstalledCluster, where: str, manifest: Json) -> None:
    path = f"/apis/tessera.dev/v1alpha1/{where}/{manifest['metadata']['name']}"
    await cluster.api.apply(path, manifest, "kubectl")


def _pool() -> Json:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "AcceleratorPool",
        "metadata": {"name": POOL},
        "spec": {
            "nodeSelector": {"example.org/pool": LABEL},
            "namespaces": [NAMESPACE],
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": _PRICE}],
        },
    }


def _service(name: str, model: str, min_replicas: int) -> Json:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": f"hf://{model}"},
            "class": "Standard",
            "slo": {"ttftP95": "5s", "itlP95": "200ms"},
            "context": {"maxModelLen": 4096},
            "placement": {"pools": [POOL], "mig": "Auto"},
            "scaling": {"minReplicas": min_replicas, "maxReplicas": 4},
            "drain": {"timeout": "30s"},
        },
    }


async def _follow_repartition(cluster: InstalledCluster, fleet: Fleet) -> int:
    """Report plans, phases and reasons once each, until layout and services are as planned.

    Return how many GPUs they take then.
    """
    reported: set[str] = set()

    async def pool() -> Json:
        body = await cluster.api.get(_POOL)
        status: Json = body.get("status", {})
        for key, line in _lines(status):
            if key not in reported:
                reported.add(key)
                cluster.say(line)
        return await _progress(cluster, status)

    progress = await until(
        pool, lambda seen: _is_done(seen, fleet), "the pool is laid out as planned", 900
    )
    return int(progress["gpus"])


def _lines(status: Json) -> Iterator[tuple[str, str]]:
    """Yield lines, each with what it is about: of a reason the first message is enough."""
    mig = status.get("mig", {})
    laid_out = _layout_condition(status)
    yield str(laid_out.get("reason")), f"{laid_out.get('reason')}: {laid_out.get('message')}"
    if target := mig.get("target"):
        yield (
            target["name"],
            f"plan {target['name']}: {target['gpusBefore']} GPUs -> {target['gpusAfter']}, "
            f"{target['perHourBefore']} -> {target['perHourAfter']} an hour, saved once the nodes "
            f"of idle GPUs are given back; gap {target['gap']}, {target['moves']} moves",
        )
    for unit in mig.get("units", ()):
        line = f"{unit['node']} {unit['gpus']}: {unit['phase']}"
        yield line, line


def _layout_condition(status: Json) -> Json:
    conditions = (
        condition
        for condition in status.get("conditions", ())
        if condition["type"] == "LayoutReady"
    )
    return next(conditions, {})


async def _misplaced_services(cluster: InstalledCluster, status: Json) -> list[str]:
    """Services that are not on their planned slices yet."""
    planned = {
        assignment["service"]: assignment["profile"]
        for assignment in status.get("mig", {}).get("target", {}).get("services", ())
    }
    left = []
    for ref, service in await _services(cluster):
        service_status = service.get("status", {})
        profile = planned.get(str(ref))
        variant = str(service_status.get("variant", {}).get("name", ""))
        on_planned_slice = profile is not None and profile.replace(".", "-") in variant
        if not on_planned_slice or service_status.get("replicas") != service_status.get(
            "readyReplicas"
        ):
            left.append(f"{ref}: {variant} instead of {profile}")
    return left


async def _progress(cluster: InstalledCluster, status: Json) -> Json:
    """Return what is left to do, short enough to be read when it is not done in time."""
    mig = status.get("mig", {})
    target = mig.get("target", {})
    return {
        "condition": _layout_condition(status),
        "gpus": target.get("gpusAfter"),
        "units": mig.get("units", []),
        "services": await _misplaced_services(cluster, status),
        "plans": {
            which: {key: mig[which].get(key) for key in ("at", "gpusBefore", "gpusAfter")}
            for which in ("target", "proposed")
            if mig.get(which)
        },
    }


def _is_done(progress: Json, fleet: Fleet) -> bool:
    """Return whether a plan that saves GPUs is done; one made too early saves none.

    At the start each replica has a GPU of its own, whatever a later plan begins with.
    """
    gpus = progress["gpus"]
    return bool(
        gpus is not None
        and gpus < fleet.replicas
        and not progress["units"]
        and progress["condition"].get("reason") == "AsPlanned"
        and not progress["services"]
    )


async def _used_slices(cluster: InstalledCluster) -> Json:
    """Return the slices in use, as the operator counts them, and the replicas, one on each.

    On small slices the streams may need more of them than `minReplicas`.
    """
    services = await _services(cluster)
    used = f'sum(tessera_slices{{state="used",pool="{POOL}"}})'
    return {
        "used": await _query(cluster, used),
        "replicas": sum(service["status"]["replicas"] for _, service in services),
    }


async def _services(cluster: InstalledCluster) -> list[tuple[Ref, Json]]:
    services = await cluster.services()
    return [(ref, service) for ref, service in services if ref.namespace == NAMESPACE]


async def _query(cluster: InstalledCluster, query: str) -> float | None:
    async with httpx.AsyncClient(timeout=30) as http:
        response = await http.get(
            f"{cluster.world.prometheus_url}/api/v1/query", params={"query": query}
        )
    result = response.json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def _are_replicas(slices: Json, fleet: Fleet) -> bool:
    return bool(slices["used"] == slices["replicas"] >= fleet.replicas)


def _check_results(
    results: streams.Streams, minimum: ready_replicas.MinimumReady, fleet: Fleet
) -> None:
    if results.broken:
        raise StepError(f"{len(results.broken)} streams broke, first: {results.broken[0]}")
    below = {
        name: n
        for name, least in fleet.min_replicas.items()
        if (n := minimum.replicas.get(name, 0)) < least
    }
    if below:
        raise StepError(f"services below their minReplicas: {json.dumps(below)}")


async def _draw(cluster: InstalledCluster) -> None:
    """Print the mosaic of the pool, and note it as a picture."""
    with tempfile.NamedTemporaryFile("r", suffix=".svg", encoding="utf-8") as picture:
        prometheus = ("--prometheus", cluster.world.prometheus_url)
        mosaic = await cluster.tessera("mosaic", POOL, *prometheus, "--svg", picture.name)
        cluster.notebook.mosaics.append(picture.read())
    cluster.say(f"\n{mosaic.rstrip()}")
