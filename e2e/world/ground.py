"""The ground that a world stands on: control plane, Prometheus, KWOK, first objects."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from world.api import CONFIG_MAPS, SERVICE_ACCOUNTS, Api, connect
from world.children import Child, spawn, until
from world.control_plane import ControlPlane
from world.keys import Authority
from world.kwok import kwok
from world.places import MANIFESTS
from world.plan import Plan
from world.prometheus import prometheus
from world.slots import free_port

START_SECONDS = 90
MASTERS = "system:masters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    plane: ControlPlane
    children: Sequence[Child]
    api: Api
    """As the kubelet, whose name stands in the audit log."""
    kubeconfig: Path
    """The user's: everything is allowed."""
    prometheus_port: int


@contextlib.asynccontextmanager
async def ground(plan: Plan) -> AsyncIterator[Ground]:
    """Ready when the API can take pods; a child that dies meanwhile is reported at once."""
    control = plan.slot.control
    plane = ControlPlane(
        binaries=plan.binaries,
        folder=plan.folder,
        slot=plan.slot,
        beats=plan.beats,
        keys=Authority(plan.folder / "keys"),
        etcd_port=free_port(control),
        api_port=free_port(control),
    )
    own = plane.kubeconfig("kubelet.kubeconfig", "system:world:kubelet", MASTERS)
    children: list[Child] = []
    async with _ended_at_last(children), connect(own) as api:
        await _spawn(children, plan, {"etcd": plane.etcd(), "kube-apiserver": plane.api_server()})
        plan.progress("waiting for the API server")
        await _until_ready(api, children)
        arguments, port = _prometheus(plan, plane)
        await _spawn(children, plan, _clients(plan, plane) | {"prometheus": arguments})
        await _first_objects(plan, api)
        await _until_accounts(api, children)
        yield Ground(
            plane=plane,
            children=children,
            api=api,
            kubeconfig=plane.kubeconfig("kubeconfig", "admin", MASTERS),
            prometheus_port=port,
        )


def _clients(plan: Plan, plane: ControlPlane) -> dict[str, list[str]]:
    """Programs that would only retry, or give up, before the API server is ready."""
    found = {
        "kube-controller-manager": plane.controller_manager(),
        "kube-scheduler": plane.scheduler(),
    }
    if plan.fakes:
        config = plane.kubeconfig("kwok.kubeconfig", "system:world:kwok", MASTERS)
        found["kwok"] = kwok(plane, config)
    return found


def _prometheus(plan: Plan, plane: ControlPlane) -> tuple[list[str], int]:
    config = plane.kubeconfig("prometheus.kubeconfig", "system:world:prometheus", MASTERS)
    return prometheus(
        plan.binaries, plan.folder, plan.slot, config, scrape_seconds=plan.beats.scrape_seconds
    )


@contextlib.asynccontextmanager
async def _ended_at_last(children: list[Child]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for child in reversed(children):
            await child.end()


async def _spawn(children: list[Child], plan: Plan, programs: dict[str, list[str]]) -> None:
    for name, arguments in programs.items():
        children.append(await spawn(name, arguments, plan.folder / "logs"))


async def _until_ready(api: Api, children: Sequence[Child]) -> None:
    await until(
        lambda: api.answers("/readyz"),
        children,
        what="a ready API server",
        seconds=START_SECONDS,
    )


async def _until_accounts(api: Api, children: Sequence[Child]) -> None:
    """Before these two exist, the API refuses pods or their tokens cannot be mounted."""
    account = SERVICE_ACCOUNTS.path("default", "default")
    authority = CONFIG_MAPS.path("default", "kube-root-ca.crt")
    for path in (account, authority):
        await until(partial(api.answers, path), children, what=path, seconds=START_SECONDS)


async def _first_objects(plan: Plan, api: Api) -> None:
    files = ["base.yaml", *(["gpu.yaml"] if plan.has_gpus else [])]
    for file in files:
        for manifest in yaml.safe_load_all((MANIFESTS / file).read_text()):
            await api.apply_manifest(manifest)


async def watch(children: Sequence[Child]) -> None:
    """Raise as soon as a child has ended, which none should."""
    waits = [asyncio.create_task(child.process.wait()) for child in children]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for child in children:
        child.check()
