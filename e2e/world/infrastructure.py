"""What every world needs before its nodes: control plane, Prometheus, KWOK, first objects."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from world.api import CONFIG_MAPS, SERVICE_ACCOUNTS, Api, connect
from world.child_processes import until
from world.control_plane import ControlPlane
from world.folders import MANIFESTS, SCRAPE_TOKEN
from world.keys import Authority
from world.kwok import kwok
from world.plan import Plan
from world.programs import Programs, programs
from world.prometheus import prometheus
from world.slots import free_port

START_SECONDS = 300
SCRAPE_TOKEN_SECONDS = 7 * 24 * 3600
MASTERS = "system:masters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Infrastructure:
    plane: ControlPlane
    programs: Programs
    api: Api
    """As the kubelet, whose name stands in the audit log."""
    kubeconfig: Path
    """The user's: everything is allowed."""
    prometheus_port: int


@contextlib.asynccontextmanager
async def start_infrastructure(plan: Plan) -> AsyncIterator[Infrastructure]:
    """Yield once the API can take pods; a child process that dies before is reported at once."""
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
    kubelet_config = plane.kubeconfig("kubelet.kubeconfig", "system:world:kubelet", MASTERS)
    async with programs(plan.folder / "logs") as running, connect(kubelet_config) as api:
        await running.add({"etcd": plane.etcd(), "kube-apiserver": plane.api_server()})
        plan.progress("waiting for the API server")
        await _until_ready(api, running)
        arguments, port = _prometheus(plan, plane)
        await running.add(_clients(plan, plane) | {"prometheus": arguments})
        await _first_objects(plan, api)
        await _until_accounts(api, running)
        yield Infrastructure(
            plane=plane,
            programs=running,
            api=api,
            kubeconfig=plane.kubeconfig("kubeconfig", "admin", MASTERS),
            prometheus_port=port,
        )


def _clients(plan: Plan, plane: ControlPlane) -> dict[str, list[str]]:
    """Programs that would only retry, or give up, before the API server is ready."""
    commands = {
        "kube-controller-manager": plane.controller_manager(),
        "kube-scheduler": plane.scheduler(),
    }
    if plan.fakes:
        config = plane.kubeconfig("kwok.kubeconfig", "system:world:kwok", MASTERS)
        commands["kwok"] = kwok(plane, config)
    return commands


def _prometheus(plan: Plan, plane: ControlPlane) -> tuple[list[str], int]:
    config = plane.kubeconfig("prometheus.kubeconfig", "system:world:prometheus", MASTERS)
    return prometheus(
        plan.binaries, plan.folder, plan.slot, config, scrape_seconds=plan.beats.scrape_seconds
    )


async def _until_ready(api: Api, running: Programs) -> None:
    await until(
        lambda: api.exists("/readyz"),
        running.running,
        what="a ready API server",
        seconds=START_SECONDS,
    )


async def _until_accounts(api: Api, running: Programs) -> None:
    """Before these two exist, the API refuses pods or their tokens cannot be mounted."""
    account = SERVICE_ACCOUNTS.path("default", "default")
    authority = CONFIG_MAPS.path("default", "kube-root-ca.crt")
    for path in (account, authority):
        await until(partial(api.exists, path), running.running, what=path, seconds=START_SECONDS)


async def _first_objects(plan: Plan, api: Api) -> None:
    files = ["base.yaml", *(["gpu.yaml"] if plan.has_gpus else [])]
    if any(group.autoscaler == "karpenter" for group in plan.groups):
        files.append("karpenter.yaml")
    for file in files:
        for manifest in yaml.safe_load_all((MANIFESTS / file).read_text()):
            await api.apply_manifest(manifest)
    account = SERVICE_ACCOUNTS.path("monitoring", "prometheus", "token")
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": SCRAPE_TOKEN_SECONDS},
    }
    token = (await api.create(account, request))["status"]["token"]
    (plan.folder / SCRAPE_TOKEN).write_text(token)
