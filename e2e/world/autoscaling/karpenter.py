"""The real core of Karpenter, with its provider for KWOK, whose nodes get machines of the world.

Karpenter decides, and makes and removes the objects of nodes. A machine boots for each of them: its
kubelet takes the object over, and ends with it.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from world.api import MERGE, NODES, Api, Json, Resource
from world.autoscaling.taints import remove_taint
from world.binaries import Progress
from world.child_processes import until
from world.control_plane import ControlPlane
from world.errors import WorldError, advice
from world.fleet import NodeGroup, Taint
from world.folders import HERE, cache, make_once
from world.informer import Informer, Key
from world.kubelet.node import KWOK
from world.labels import ZONES, basic_resources, deploy_labels, taints
from world.machines import Machines
from world.programs import Programs

MODULE = HERE / "karpenter"
NAME, SOURCE = "karpenter", "sigs.k8s.io/karpenter"
START_SECONDS = 60
NODE_POOL, REGISTERED = "karpenter.sh/nodepool", "karpenter.sh/registered"
# Until a machine has booted: Karpenter gives a node its GPUs before anything runs on it.
BOOTING: Json = {"key": "world/booting", "effect": "NoSchedule"}


def program(progress: Progress) -> Path:
    """Return the folder of the program and of its resource definitions, built when missing."""
    return make_once(_folder(), partial(_build, progress), progress)


def is_built() -> bool:
    return _folder().exists()


def _folder() -> Path:
    pins = (MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes()
    return cache() / "bin" / f"{NAME}-{hashlib.sha256(pins).hexdigest()[:12]}"


def _build(progress: Progress, folder: Path) -> None:
    """Build a copy that listens on loopback: the original listens everywhere, without a flag."""
    progress(f"building {NAME} (5 minutes of CPU time the first time)")
    module = json.loads(_go("mod", "download", "-json", SOURCE, cwd=MODULE))
    copy = folder / "source"
    shutil.copytree(module["Dir"], copy / NAME, copy_function=shutil.copyfile)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # a cache of modules is read-only
    operator = copy / NAME / "pkg" / "operator" / "operator.go"
    text = operator.read_text()
    if text.count('fmt.Sprintf(":%d"') != 2:
        raise WorldError(f"{NAME} listens elsewhere than expected; see {operator}")
    operator.write_text(text.replace('fmt.Sprintf(":%d"', 'fmt.Sprintf("127.0.0.1:%d"'))
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(MODULE / name, copy / name)
    _go("mod", "edit", "-replace", f"{SOURCE}=./{NAME}", cwd=copy)
    flags = ["-gcflags=all=-dwarf=false", "-trimpath", "-ldflags", "-s -w"]
    _go("build", *flags, "-o", str(folder / NAME), f"{SOURCE}/kwok", cwd=copy)
    for crds in ("pkg/apis/crds", "kwok/apis/crds"):
        shutil.copytree(copy / NAME / crds, folder / "crds", dirs_exist_ok=True)
    shutil.rmtree(copy)


def _go(*arguments: str, cwd: Path) -> str:
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOGC": "400"}
    done = subprocess.run(
        ["go", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WorldError(
            f"{done.stderr[-2000:]}\ngo {' '.join(arguments)} failed: {advice(done.stderr)}"
        )
    return done.stdout


async def start(
    api: Api,
    plane: ControlPlane,
    programs: Programs,
    folder: Path,
    groups: tuple[NodeGroup, ...],
) -> None:
    """Start it with a node pool for each group."""
    for path in sorted((folder / "crds").glob("*.yaml")):
        await api.apply_manifest(yaml.safe_load(path.read_text()))
    for version, plural in (
        ("karpenter.sh/v1", "nodepools"),
        ("karpenter.sh/v1alpha1", "nodeoverlays"),
        ("karpenter.kwok.sh/v1alpha1", "kwoknodeclasses"),
    ):
        served = partial(api.exists, Resource(version, plural).path())
        await until(served, programs.running, what=plural, seconds=START_SECONDS)
    for group in groups:
        for manifest in _manifests(group):
            await api.apply_manifest(manifest)
    types = plane.folder / "karpenter-instance-types.json"
    types.write_text(json.dumps([_instance_type(group) for group in groups]))
    config = plane.kubeconfig("karpenter.kubeconfig", "system:world:karpenter", "system:masters")
    environment = {"KUBECONFIG": config, "SYSTEM_NAMESPACE": "kube-system"}
    await programs.add(
        {
            NAME: [
                "env",
                *(f"{key}={value}" for key, value in environment.items()),
                str(folder / NAME),
                "--metrics-port=0",
                "--health-probe-port=0",
                "--disable-leader-election=true",
                f"--instance-types-file-path={types}",
                "--feature-gates=NodeOverlay=true",
                "--batch-idle-duration=200ms",
                "--batch-max-duration=1s",
            ]
        }
    )


@dataclass(slots=True, kw_only=True)
class KarpenterMachines:
    """Boots a machine for each node that Karpenter makes, and ends it with its object."""

    api: Api
    machines: Machines
    groups: dict[str, NodeGroup]
    tasks: asyncio.TaskGroup
    _booting: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        selector = {"labelSelector": f"{NODE_POOL} in ({','.join(sorted(self.groups))})"}
        await Informer(self.api, NODES.path(), self._changed, selector).follow()

    def _changed(self, key: Key, node: Json | None) -> None:
        _, name = key
        if node is None:
            if name in self._booting:
                self.tasks.create_task(self._end(name))
        # Karpenter puts all taints on a node that it registers, those that were removed too.
        elif name not in self._booting and REGISTERED in node["metadata"]["labels"]:
            self._booting[name] = self.tasks.create_task(self._boot(node))

    async def _boot(self, node: Json) -> None:
        name, path = node["metadata"]["name"], NODES.path(name=node["metadata"]["name"])
        spec = self.groups[node["metadata"]["labels"][NODE_POOL]].node(name)
        labels = deploy_labels(spec) | ({"nvidia.com/gpu.present": "true"} if spec.gpus else {})
        annotations = dict.fromkeys(KWOK)  # KWOK leaves the node alone
        meta = {"metadata": {"labels": labels, "annotations": annotations}}
        await self.api.patch(path, meta, MERGE)
        nothing = {name: None for name in node["status"]["allocatable"] if "/" in name}
        status = {"allocatable": nothing, "capacity": nothing}
        await self.api.patch(NODES.path(name=name, sub="status"), {"status": status}, MERGE)
        await self.machines.boot(self.tasks, spec, new=True)
        await remove_taint(self.api, name, BOOTING["key"])

    async def _end(self, name: str) -> None:
        await asyncio.wait([self._booting.pop(name)])
        await self.machines.end(name)


def _manifests(group: NodeGroup) -> list[Json]:
    template = group.template
    own = {"name": group.name}
    labels = {key: value for key, value in template.labels.items() if key != NODE_POOL}
    only = [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": [group.name]}]
    node_class = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": group.name}
    pool = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": own,
        "spec": {
            "limits": {"cpu": str(group.max_nodes * template.cpu)},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "requirements": only,
                    "taints": [_taint(taint) for taint in taints(template)],
                    "startupTaints": [BOOTING],
                    "nodeClassRef": node_class,
                },
            },
            "disruption": {
                "consolidationPolicy": "WhenEmpty",
                "consolidateAfter": f"{group.empty_seconds:.0f}s",
            },
        },
    }
    delay = {"nodeRegistrationDelay": f"{group.start_seconds:.0f}s"}
    manifests: list[Json] = [
        {
            "apiVersion": "karpenter.kwok.sh/v1alpha1",
            "kind": "KWOKNodeClass",
            "metadata": own,
            "spec": delay,
        },
        pool,
    ]
    if group.known_resources:
        overlay = {"requirements": only, "capacity": dict(group.known_resources)}
        manifests.append(
            {
                "apiVersion": "karpenter.sh/v1alpha1",
                "kind": "NodeOverlay",
                "metadata": own,
                "spec": overlay,
            }
        )
    return manifests


def _taint(taint: Taint) -> Json:
    """Return a taint as Karpenter takes it: without an empty value."""
    return {key: value for key, value in taint.model_dump().items() if value}


def _instance_type(group: NodeGroup) -> Json:
    """Return what the provider lists: the type is named after its group."""
    template = group.template
    zone = template.zone or ZONES[template.cloud][1] or "world"
    capacity_type = "spot" if template.tier == "Spot" else "on-demand"
    requirements = [
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": [capacity_type]},
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]},
    ]
    resources = basic_resources(template)
    if template.gpus:
        resources["nvidia.com/gpu"] = str(len(template.gpus))
    return {
        "name": group.name,
        "offerings": [{"price": 1.0, "available": True, "Requirements": requirements}],
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": resources,
    }
