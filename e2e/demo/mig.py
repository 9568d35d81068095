"""`make demo-mig`: GPUs that are cut wrongly are cut anew under running streams.

Twelve services have a whole GPU a replica, on slices that fill one. The pool is then told to plan
its own layouts; nobody falls below his floor, and no stream breaks.
"""

import json
from typing import Literal, get_args

import httpx

from demo import floors, streams
from demo import stage as stages
from demo.stage import Json, Ref, SceneError, Stage, all_ready, until

POOL = "a100"
NAMESPACE = "team-mig"
Backend = Literal["MigManager", "Agent"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_POOL = f"/apis/tessera.dev/v1alpha1/acceleratorpools/{POOL}"
_MANAGERS = "gpu-operator"
_PRICE = "3.40"
_TOKENS = 120
_LOOKS = 20
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
# 29 of 32 GPUs are in use, so that somebody has to leave before others get their slices.
FLOORS = {name: 3 if name.startswith(("small", "large")) else 2 for name in SERVICES}


async def install(stage: Stage, backend: Backend) -> None:
    """The chart with the right to cut, and agents that cut themselves or only look."""
    cuts = str(backend == "Agent").lower()
    await stages.install(
        stage,
        "mig.enabled=true",
        f"mig.managerNamespace={_MANAGERS}",
        "node.enabled=true",
        f"node.partition={cuts}",
    )


async def play(stage: Stage, backend: Backend = "Agent") -> None:
    """Bring the fleet to its planned layout, and judge what it cost anybody."""
    await _begin(stage)
    stage.say("\n" + await _mosaic(stage))
    bases = {name: await stage.address(Ref(NAMESPACE, name)) for name in SERVICES}
    async with streams.streaming(bases, tokens=_TOKENS) as seen, floors.watched(stage) as least:
        await until(lambda: _read(stage, seen), bool, "every service was read under load", 60)
        await stage.api.patch(_POOL, {"spec": {"mig": {"mode": "Auto", "backend": backend}}})
        stage.say(f"the pool plans its layouts; {backend} cuts, while {len(bases)} clients stream")
        await _laid_out(stage)
    _judge(stage, seen, least)
    await until(lambda: _used(stage), _all_there, "Prometheus knows the slices in use", 30)
    stage.say("\n" + await _mosaic(stage))
    stage.say("\n" + await stage.run("kubectl", "get", "acceleratorpools"))


async def _read(stage: Stage, seen: streams.Streams) -> bool:
    """Prometheus looks every second, and a new replica says nothing of its load at first: a plan
    that is made before knows no more than what everybody has."""
    query = f"count(count_over_time(vllm:num_requests_running[1m]) >= {_LOOKS})"
    read = await _asked(stage, query) or 0
    return seen.whole >= 10 * len(SERVICES) and read >= sum(FLOORS.values())


async def _begin(stage: Stage) -> None:
    await stage.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    await _apply(stage, "acceleratorpools", _pool())
    for name, model in SERVICES.items():
        await _apply(stage, f"namespaces/{NAMESPACE}/inferenceservices", _service(name, model))
    stage.say(
        f"{len(SERVICES)} services, {sum(FLOORS.values())} replicas, each on a GPU of its own"
    )
    await all_ready(stage, 180)


async def _apply(stage: Stage, where: str, manifest: Json) -> None:
    path = f"/apis/tessera.dev/v1alpha1/{where}/{manifest['metadata']['name']}"
    await stage.api.apply(path, manifest, "kubectl")


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
            "scaling": {"minReplicas": FLOORS[name], "maxReplicas": 4},
            "drain": {"timeout": "30s"},
        },
    }


async def _laid_out(stage: Stage) -> None:
    """Say every step once, until everything is as planned and everybody is on his slices."""
    told: set[str] = set()

    async def pool() -> Json:
        found = await stage.api.get(_POOL)
        status: Json = found.get("status", {})
        for line in _lines(status):
            if line not in told:
                told.add(line)
                stage.say(line)
        return status | {"services": await _settled(stage, status)}

    await until(pool, _is_over, "the pool is laid out as planned", 600)


def _lines(status: Json) -> list[str]:
    mig = status.get("mig", {})
    laid_out = _laid(status)
    lines = [f"{laid_out.get('reason')}: {laid_out.get('message')}"]
    if target := mig.get("target"):
        lines.append(
            f"plan {target['name']}: {target['gpusBefore']} GPUs -> {target['gpusAfter']}, "
            f"{target['perHourBefore']} -> {target['perHourAfter']} an hour, "
            f"gap {target['gap']}, {target['moves']} moves"
        )
    lines += [f"{unit['node']} {unit['gpus']}: {unit['phase']}" for unit in mig.get("units", ())]
    return lines


def _laid(status: Json) -> Json:
    found = (one for one in status.get("conditions", ()) if one["type"] == "LayoutReady")
    return next(found, {})


async def _settled(stage: Stage, status: Json) -> list[str]:
    """Services that are not on their planned slices yet."""
    planned = {
        one["service"]: one["profile"]
        for one in status.get("mig", {}).get("target", {}).get("services", ())
    }
    left = []
    for ref, one in await stage.services():
        found = one.get("status", {})
        profile = planned.get(str(ref))
        on = str(found.get("variant", {}).get("name", ""))
        there = profile is not None and profile.replace(".", "-") in on
        if not there or found.get("replicas") != found.get("readyReplicas"):
            left.append(f"{ref}: {on} instead of {profile}")
    return left


def _is_over(status: Json) -> bool:
    """Where the plan saves GPUs: one that was made too early does not, and another follows."""
    mig = status.get("mig", {})
    target = mig.get("target")
    return bool(
        target
        and target["gpusAfter"] < target["gpusBefore"]
        and not mig.get("units")
        and _laid(status).get("reason") == "AsPlanned"
        and not status["services"]
    )


async def _used(stage: Stage) -> float | None:
    """Slices in use, as the operator counts them."""
    return await _asked(stage, 'sum(tessera_slices{state="used"})')


async def _asked(stage: Stage, query: str) -> float | None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(
            f"{stage.world.prometheus_url}/api/v1/query", params={"query": query}
        )
    result = answer.json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def _all_there(used: float | None) -> bool:
    return used == sum(FLOORS.values())


def _judge(stage: Stage, seen: streams.Streams, least: floors.Least) -> None:
    stage.say(
        f"{seen.whole} streams of {_TOKENS} tokens, {len(seen.broken)} broken; {least.events} "
        f"events of pods, {least.moved} replicas started; nobody was below "
        f"{min(least.replicas.values())} Ready"
    )
    if seen.broken:
        raise SceneError(f"{len(seen.broken)} streams broke, first: {seen.broken[0]}")
    below = {name: n for name in SERVICES if (n := least.replicas.get(name, 0)) < FLOORS[name]}
    if below:
        raise SceneError(f"services below their floors: {json.dumps(below)}")


async def _mosaic(stage: Stage) -> str:
    return await stage.tessera("mosaic", POOL)
