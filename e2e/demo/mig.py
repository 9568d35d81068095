"""`make demo-mig`: GPUs with an unsuitable layout are repartitioned under running streams.

Twelve services have a whole GPU per replica, on slices that fill one. The pool then plans its own
layouts; no service falls below its minReplicas, and no stream breaks.
"""

import json
from typing import Literal, get_args

import httpx

from demo import cluster as installed_cluster
from demo import ready_replicas, streams
from demo.cluster import InstalledCluster, Json, Ref, StepError, all_ready, until

POOL = "a100"
NAMESPACE = "team-mig"
Backend = Literal["MigManager", "Agent"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_POOL = f"/apis/tessera.dev/v1alpha1/acceleratorpools/{POOL}"
_MANAGERS = "gpu-operator"
_PRICE = "3.40"
_TOKENS = 120
_SCRAPES = 20
_MODELS = {
    "tiny": ("meta-llama/Llama-3.2-1B-Instruct", 4),
    "small": ("meta-llama/Llama-3.2-3B-Instruct", 3),
    "middle": ("meta-llama/Llama-3.1-8B-Instruct", 3),
    "large": ("Qwen/Qwen2.5-14B-Instruct", 2),
}
SERVICES = {
    f"{name}-{number}": model
    for name, (model, count) in _MODELS.items()
    for number in range(1, count + 1)
}
# 29 of 32 GPUs are in use, so that some replicas have to leave before others get their slices.
MIN_REPLICAS = {name: 3 if name.startswith(("small", "large")) else 2 for name in SERVICES}


async def install(
    cluster: InstalledCluster, backend: Backend, *, require_budget: bool = False
) -> None:
    """Install the chart with MIG permissions, and agents that partition GPUs or only observe."""
    partition = str(backend == "Agent").lower()
    await installed_cluster.install(
        cluster,
        f"requireBudget={str(require_budget).lower()}",
        "mig.enabled=true",
        f"mig.managerNamespace={_MANAGERS}",
        "node.enabled=true",
        f"node.partition={partition}",
    )


async def run(cluster: InstalledCluster, backend: Backend = "Agent") -> None:
    """Bring the fleet to its planned layout, and check streams and replicas meanwhile."""
    await _begin(cluster)
    cluster.say("\n" + await _mosaic(cluster))
    bases = {name: await cluster.address(Ref(NAMESPACE, name)) for name in SERVICES}
    async with (
        streams.streaming(bases, tokens=_TOKENS) as results,
        ready_replicas.watch_minimum_ready(cluster) as minimum,
    ):
        await until(
            lambda: _is_scraped(cluster, results), bool, "every service was read under load", 240
        )
        await cluster.api.patch(_POOL, {"spec": {"mig": {"mode": "Auto", "backend": backend}}})
        cluster.say(
            f"the pool plans its layouts; {backend} partitions, {len(bases)} clients stream"
        )
        await _follow_repartition(cluster)
    _check_results(cluster, results, minimum)
    await until(
        lambda: _used_slices(cluster), _are_replicas, "Prometheus knows the slices in use", 30
    )
    cluster.say("\n" + await _mosaic(cluster))
    cluster.say("\n" + await cluster.run("kubectl", "get", "acceleratorpools"))


async def _is_scraped(cluster: InstalledCluster, results: streams.Streams) -> bool:
    """Prometheus scrapes every second, and a new replica has no load at first: an earlier plan
    would be made without measurements."""
    query = f"count(count_over_time(vllm:num_requests_running[2m]) >= {_SCRAPES})"
    read = await _query(cluster, query) or 0
    return results.whole >= 10 * len(SERVICES) and read >= sum(MIN_REPLICAS.values())


async def _begin(cluster: InstalledCluster) -> None:
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    await _apply(cluster, "acceleratorpools", _pool())
    for name, model in SERVICES.items():
        await _apply(cluster, f"namespaces/{NAMESPACE}/inferenceservices", _service(name, model))
    cluster.say(
        f"{len(SERVICES)} services, {sum(MIN_REPLICAS.values())} replicas, each on a GPU of its own"
    )
    await all_ready(cluster, 180)


async def _apply(cluster: InstalledCluster, where: str, manifest: Json) -> None:
    path = f"/apis/tessera.dev/v1alpha1/{where}/{manifest['metadata']['name']}"
    await cluster.api.apply(path, manifest, "kubectl")


def _pool() -> Json:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "AcceleratorPool",
        "metadata": {"name": POOL},
        "spec": {
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": _PRICE}],
        },
    }


def _service(name: str, model: str) -> Json:
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
            "scaling": {"minReplicas": MIN_REPLICAS[name], "maxReplicas": 4},
            "drain": {"timeout": "30s"},
        },
    }


async def _follow_repartition(cluster: InstalledCluster) -> None:
    """Report every step once, until the layout and the slices of all services are as planned."""
    reported: set[str] = set()

    async def pool() -> Json:
        body = await cluster.api.get(_POOL)
        status: Json = body.get("status", {})
        for line in _lines(status):
            if line not in reported:
                reported.add(line)
                cluster.say(line)
        return await _progress(cluster, status)

    await until(pool, _is_done, "the pool is laid out as planned", 1200)


def _lines(status: Json) -> list[str]:
    mig = status.get("mig", {})
    laid_out = _layout_condition(status)
    lines = [f"{laid_out.get('reason')}: {laid_out.get('message')}"]
    if target := mig.get("target"):
        lines.append(
            f"plan {target['name']}: {target['gpusBefore']} GPUs -> {target['gpusAfter']}, "
            f"{target['perHourBefore']} -> {target['perHourAfter']} an hour, "
            f"gap {target['gap']}, {target['moves']} moves"
        )
    lines += [f"{unit['node']} {unit['gpus']}: {unit['phase']}" for unit in mig.get("units", ())]
    return lines


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
    for ref, service in await cluster.services():
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
    }


def _is_done(progress: Json) -> bool:
    """Return whether a plan that saves GPUs is done; one made too early saves none.

    At the start each replica has a GPU of its own, whatever a later plan begins with.
    """
    gpus = progress["gpus"]
    return bool(
        gpus is not None
        and gpus < sum(MIN_REPLICAS.values())
        and not progress["units"]
        and progress["condition"].get("reason") == "AsPlanned"
        and not progress["services"]
    )


async def _used_slices(cluster: InstalledCluster) -> Json:
    """Return the slices in use, as the operator counts them, and the replicas, one on each.

    On small slices the streams may need more of them than `minReplicas`.
    """
    services = await cluster.services()
    return {
        "used": await _query(cluster, 'sum(tessera_slices{state="used"})'),
        "replicas": sum(service["status"]["replicas"] for _, service in services),
    }


async def _query(cluster: InstalledCluster, query: str) -> float | None:
    async with httpx.AsyncClient() as http:
        response = await http.get(
            f"{cluster.world.prometheus_url}/api/v1/query", params={"query": query}
        )
    result = response.json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def _are_replicas(slices: Json) -> bool:
    return bool(slices["used"] == slices["replicas"] >= sum(MIN_REPLICAS.values()))


def _check_results(
    cluster: InstalledCluster, results: streams.Streams, minimum: ready_replicas.MinimumReady
) -> None:
    cluster.say(
        f"{results.whole} streams of {_TOKENS} tokens, {len(results.broken)} broken; "
        f"{minimum.events} events of pods, {minimum.started} replicas started; "
        f"no service was below {min(minimum.replicas.values())} Ready"
    )
    if results.broken:
        raise StepError(f"{len(results.broken)} streams broke, first: {results.broken[0]}")
    below = {
        name: n for name in SERVICES if (n := minimum.replicas.get(name, 0)) < MIN_REPLICAS[name]
    }
    if below:
        raise StepError(f"services below their minReplicas: {json.dumps(below)}")


async def _mosaic(cluster: InstalledCluster) -> str:
    return await cluster.tessera("mosaic", POOL)
