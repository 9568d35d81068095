"""The large fleet: nodes that KWOK plays, and services in many namespaces."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from world.api import Json

SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
REPLICAS = 2
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
        {"name": "control", "kind": "cpu"},
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
