"""The large fleet: nodes that KWOK plays, and services in many namespaces."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world.api import Json

SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
REPLICAS = 2
# The only node whose pods really run.
CONTROL_NODE = "control"
EDITS_A_SECOND = 20
# Edits of which each finds the fleet quiet, before those at a steady rate.
ALONE = 3
# Connections that a client uses.
AT_ONCE = 16
_NAMESPACES = 40
_SLICES = ("1g.10gb",) * 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large."""

    nodes: int
    services: int

    @property
    def namespaces(self) -> list[str]:
        return [f"team-{index:02d}" for index in range(min(_NAMESPACES, self.services))]

    @property
    def names(self) -> list[tuple[str, str]]:
        """Namespace and name of every service."""
        spaces = self.namespaces
        return [(spaces[i % len(spaces)], f"svc-{i:04d}") for i in range(self.services)]


def fleet_file(folder: Path, size: Size) -> Path:
    """One node with a kubelet, for the operator; the others are only said to run their pods."""
    product = "NVIDIA-A100-SXM4-80GB"
    gpus = [list(_SLICES)] * 4
    fake = {"name": "gpu", "kind": "kwok", "count": size.nodes, "product": product, "gpus": gpus}
    taints = [{"key": "nvidia.com/gpu"}]  # the operator belongs where something really runs
    nodes = [
        {"name": CONTROL_NODE, "kind": "cpu"},
        fake | {"tier": "Reserved", "taints": taints},
    ]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    return path


def pool() -> Json:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "AcceleratorPool",
        "metadata": {"name": "a100"},
        "spec": {
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": "2.00"}],
        },
    }


def service(namespace: str, name: str) -> Json:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": SMALL}, "replicas": REPLICAS},
    }


async def each(
    items: Iterable[tuple[str, str]], act: Callable[[str, str], Awaitable[object]]
) -> None:
    """Do it for all, with as many connections as a client uses."""
    left = iter(items)

    async def work() -> None:
        for namespace, name in left:
            await act(namespace, name)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


async def at_steady_rate(
    indexes: Iterable[int], act: Callable[[int], Coroutine[Any, Any, float]]
) -> list[float]:
    """Start EDITS_A_SECOND actions a second; return the seconds that each took, in order."""
    begun, tasks = time.monotonic(), []
    async with asyncio.TaskGroup() as group:
        for count, index in enumerate(indexes):
            await asyncio.sleep(max(0.0, begun + count / EDITS_A_SECOND - time.monotonic()))
            tasks.append(group.create_task(act(index)))
    return sorted(task.result() for task in tasks)


def percentile_ms(ordered: list[float], share: float) -> int:
    """Return a percentile of ordered seconds, in milliseconds."""
    return round(ordered[int(share * (len(ordered) - 1))] * 1e3)
