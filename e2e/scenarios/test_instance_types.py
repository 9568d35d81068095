"""A service whose recorded days call for more GPUs a replica moves there, and back with others."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from demo.cluster import InstalledCluster, condition
from scenarios.floors import CLIENTS, FloorScene, Pool, floor_scene, streaming
from scenarios.gateway import Gateway
from scenarios.kills import kill_operator
from scenarios.lifecycle import POOL_LABEL
from scenarios.tiers import killing_at_writes, list_pods, takes_requests
from tessera.api.ref import Ref
from tessera.domain.names import VARIANT_LABEL
from tessera.domain.observed.load_history import SPAN, LoadSpan
from tests.domain.instance_types.types import CHAT, REASONING
from tests.recorded_load import RecordedEngine, record_load
from world import World, clock, start
from world.testing import eventually

H100S = Pool("floor-types", "OnDemand", "6.88")
_ONE, _TWO = f"{H100S.label}-1gpu", f"{H100S.label}-2gpu"
# Room for two replicas of two GPUs beside two of one.
_NODES, _GPUS = 2, 4
_FLOOR = 2
_DAYS = 2
# What was recorded just now would count as load of now.
_PAUSE = timedelta(hours=1)
# Long answers, for which the cache of one GPU has little room, and short ones: whether engines are
# as fast as predicted or as slow as they can be, one or two GPUs are the cheapest.
LONG = replace(REASONING, rate=3.0, output_tokens=2000, resident_tokens=6000)
SHORT = CHAT
# What a change of type writes. A killed process starts again after ten seconds.
_WRITTEN = frozenset({"deployments", "pods", "inferenceservices"})
_KILLED_SECONDS = 900
_SPEC = {
    "model": {"uri": "hf://Qwen/Qwen3-32B-FP8"},
    "slo": {"ttftP95": "10s", "itlP95": "4s"},
    "context": {"maxModelLen": 32_768},
    "scaling": {"minReplicas": _FLOOR, "maxReplicas": 48},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    h100 = {"product": "NVIDIA-H100-80GB-HBM3", "gpus": ["whole"] * _GPUS}
    node = {"name": "h100", "count": _NODES, "labels": {POOL_LABEL: H100S.label}, **h100}
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(json.dumps({"nodes": [{"name": "control", "kind": "cpu"}, node]}))
    with start(fleet=path) as world:
        yield world


@pytest.mark.full
@pytest.mark.parametrize("kills", [False, True], ids=["once", "at-each-write"])
async def test_recorded_days_move_a_service_to_two_gpus_and_others_back(
    gateway: Gateway, kills: bool
) -> None:
    """A new leader reads the recorded days anew; the one before it would in an hour."""
    async with floor_scene(gateway, (H100S,), {_ONE: _FLOOR}, **_SPEC) as scene:
        async with streaming(scene):
            for load, variant, name in ((LONG, _TWO, "two"), (SHORT, _ONE, "back")):
                async with recorded_days(scene, load):
                    await _move(scene, variant, name, kills=kills)
                    await scene.outlast(3 * CLIENTS)
                    # The service stays there on the same days.
                    await _is_all_of(scene, variant)
        scene.end(away=0)


async def _move(scene: FloorScene, variant: str, name: str, *, kills: bool) -> None:
    """Kill the operator, and wait until all replicas are of a variant and the status says why."""
    scene.begin()
    await kill_operator(scene.cluster)
    if kills:
        async with killing_at_writes(scene.namespace, _WRITTEN) as killer:
            await eventually(lambda: _is_all_of(scene, variant), within=_KILLED_SECONDS)
        scene.cluster.say(f"{name}: killed after {dict(killer.kills)}")
        assert killer.kills
    else:
        await eventually(lambda: _is_all_of(scene, variant))
    scene.take_time(name)

    async def is_said() -> None:
        placed = condition({"status": await scene.namespace.service_status()}, "Placed")
        assert f"{variant} costs" in placed["message"], placed
        assert "the least" in placed["message"], placed
        scene.cluster.say(placed["message"])

    await eventually(is_said)


async def _is_all_of(scene: FloorScene, variant: str) -> None:
    """Assert that all pods are of a variant, and as many as the floor serve.

    There may be more for five minutes, as many as serve what those of the other type served.
    """
    pods = await list_pods(scene.namespace)
    assert {pod["metadata"]["labels"][VARIANT_LABEL] for pod in pods} == {variant}
    assert sum(map(takes_requests, pods)) >= _FLOOR


@asynccontextmanager
async def recorded_days(scene: FloorScene, load: LoadSpan) -> AsyncIterator[None]:
    """Have days of a load of the service in Prometheus for the time of the block."""
    namespace, cluster = scene.namespace, scene.cluster
    pod = f"recorded-{load.output_tokens:.0f}"
    engine = RecordedEngine(
        service=Ref(namespace.name, "chat"), variant=_ONE, model_name="chat", pod=pod
    )
    past = clock.now() - _PAUSE
    end = past - timedelta(seconds=past.timestamp() % SPAN.total_seconds())
    count = timedelta(days=_DAYS) // SPAN
    storage = _storage(cluster)
    before = set(storage.iterdir())
    record_load(
        storage, engine, [replace(load, end=end - number * SPAN) for number in range(count)[::-1]]
    )
    series = f'vllm:request_success_total{{pod="{pod}"}} offset 2h'
    await namespace.wait_for_samples(series)
    try:
        yield
    finally:
        for block in set(storage.iterdir()) - before:
            shutil.rmtree(block)

        async def are_gone() -> None:
            assert await namespace.query_prometheus(series) == []

        await eventually(are_gone)


def _storage(cluster: InstalledCluster) -> Path:
    return cluster.world.folder / "prometheus"
