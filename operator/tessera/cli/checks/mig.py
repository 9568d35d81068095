"""Pools whose GPUs Tessera cuts: is there somebody who does it, and does it go on?"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tessera.adapters import wire
from tessera.api.mig import Mig
from tessera.cli.checks.finding import Finding, State, Ward, listed
from tessera.cli.checks.operator import deployments
from tessera.cli.cluster import Json
from tessera.cli.errors import DeniedError
from tessera.domain.names import MIG_CONFIG
from tessera.domain.pools import PoolView, discover
from tessera.domain.reasons import LayoutReady
from tessera.domain.repartition.facts import Ground
from tessera.domain.repartition.grounds import grounds
from tessera.resources.kinds import ACCELERATOR_POOLS, NODE_LAYOUTS, NODES, PODS, Kind

_ENABLED = "TESSERA_MIG_ENABLED"
_MANAGER = "app=nvidia-mig-manager"
_POLICIES = Kind(
    group="nvidia.com",
    version="v1",
    kind="ClusterPolicy",
    plural="clusterpolicies",
    namespaced=False,
    verbs=(),
)
"""How the GPU operator is set up."""
_PASSING = (
    LayoutReady.PLANNING,
    LayoutReady.AWAITING_APPROVAL,
    LayoutReady.OUTSIDE_MAINTENANCE_WINDOW,
    LayoutReady.REPARTITIONING,
)
"""What goes on, or waits for its time or for a word of the pool's owner."""


class _Fault(NamedTuple):
    """What keeps layouts from being carried out."""

    found: str
    mend: str
    state: State = State.PROBLEM


async def layouts(ward: Ward) -> Sequence[Finding]:
    """Of every pool with spec.mig: its condition, its nodes, and who cuts there."""
    pools = [wire.pool(body) for body in await ward.reader.all(ACCELERATOR_POOLS)]
    if not any(pool.spec is not None and pool.spec.mig is not None for pool in pools):
        return []
    nodes = [wire.node(body) for body in await ward.reader.all(NODES)]
    told = [wire.layout(body) for body in await ward.reader.all(NODE_LAYOUTS)]
    found = [*await _allowed(ward)]
    for view in discover(pools, nodes, ward.at.date()):
        if view.pool.spec is None or view.pool.spec.mig is None:
            continue
        here = grounds(view, nodes, told)
        faults = [*_faults(here), *await _backend(ward, view.pool.spec.mig, here)]
        name = f"layouts {view.pool.name}"
        found += [Finding(name, one.state, one.found, one.mend) for one in faults]
        found += _state(view, well=not faults)
    return found


async def _allowed(ward: Ward) -> Sequence[Finding]:
    """Was the operator granted what cutting needs? What may not be read is no failure."""
    try:
        operators = await deployments(ward.reader)
    except DeniedError:
        return ()
    for operator in operators:
        for container in operator["spec"]["template"]["spec"]["containers"]:
            if any(one["name"] == _ENABLED for one in container.get("env", ())):
                return ()
    told = "the operator was not granted what cutting needs"
    mend = "helm upgrade --reuse-values --set mig.enabled=true"
    return [Finding("layouts", State.PROBLEM, told, mend)] if operators else ()


def _state(view: PoolView, *, well: bool) -> Iterator[Finding]:
    """The pool's condition; beside other findings only where it is a problem as well."""
    name = f"layouts {view.pool.name}"
    told = next((one for one in view.pool.status.conditions if one.type == "LaidOut"), None)
    if told is None:
        yield Finding(name, State.WARNING, "no operator has looked at them", "see operator")
        return
    words = f"{told.reason}: {told.message}"
    if told.status == "False" and told.reason not in _PASSING:
        yield Finding(name, State.PROBLEM, words, f"tessera plan {view.pool.name}")
    elif well:
        yield Finding(name, State.OK, words)


def _faults(found: Sequence[Ground]) -> Iterator[_Fault]:
    """GPUs that cannot be cut, or were left half cut."""
    if found and not any(ground.cards or ground.disagrees for ground in found):
        mend = "nvidia-smi -mig 1 on a node switches it on; Tessera never changes the mode"
        yield _Fault("no GPU is in MIG mode", mend)
    for ground in found:
        look = f"kubectl get nodelayouts {ground.name} -o yaml"
        if ground.disagrees is not None:
            mend = f"kubectl describe node {ground.name}; until then it is left alone"
            yield _Fault(f"{ground.name}: {ground.disagrees}", mend)
        for card in ground.cards:
            if card.fault is not None:
                yield _Fault(f"{ground.name} GPU {card.index}: {card.fault}: {card.message}", look)
        for gpu in ground.layout.status.gpus if ground.layout and ground.layout.status else ():
            halves = [f"{one.profile}@{one.start}" for one in gpu.slices if not one.uuid]
            if halves:
                told = f"{ground.name} GPU {gpu.index} is half cut: {listed(halves)} has no device"
                mend = "tessera-node mends it where it may cut (node.cut of the chart)"
                yield _Fault(told, mend, State.WARNING)


async def _backend(ward: Ward, mig: Mig, found: Sequence[Ground]) -> Sequence[_Fault]:
    """Who cuts; nobody has to where layouts are taken as they are."""
    if mig.mode == "static" and not mig.layout:
        return ()
    return list(_agents(found)) if mig.backend == "agent" else await _manager(ward, found)


def _agents(found: Sequence[Ground]) -> Iterator[_Fault]:
    away = [one.name for one in found if one.layout is None or one.layout.status is None]
    if away:
        told = f"tessera-node does not run on {len(away)} nodes: {listed(away)}"
        yield _Fault(told, "helm upgrade --reuse-values --set node.enabled=true")
    for ground in found:
        status = ground.layout.status if ground.layout is not None else None
        if status is not None and status.problem:
            told = f"tessera-node on {ground.name} cannot tell: {status.problem}"
            yield _Fault(told, f"kubectl get nodelayouts {ground.name} -o yaml")
    looks = [one.name for one in found if one.tells_pods and not one.cuts]
    if looks:
        told = f"tessera-node only looks on {len(looks)} nodes: {listed(looks)}"
        yield _Fault(told, "helm upgrade --reuse-values --set node.cut=true")


async def _manager(ward: Ward, found: Sequence[Ground]) -> Sequence[_Fault]:
    pods = await ward.reader.all(replace(PODS, selector=None), selector=_MANAGER)
    there = {pod.get("spec", {}).get("nodeName") for pod in pods}
    away = [ground.name for ground in found if ground.name not in there]
    told = f"mig-manager does not run on {len(away)} nodes: {listed(away)}"
    mend = (
        "migManager.enabled of the GPU operator, and nvidia.com/mig.capable=true on the node; or "
        "spec.mig.backend: agent"
    )
    policies = await ward.reader.known(_POLICIES) or []
    return [*([_Fault(told, mend)] if away else []), *map(_misled, filter(_elsewhere, policies))]


def _elsewhere(policy: Json) -> bool:
    return _config(policy) != MIG_CONFIG


def _misled(policy: Json) -> _Fault:
    name = policy["metadata"]["name"]
    patch = {"spec": {"migManager": {"config": {"name": MIG_CONFIG}}}}
    return _Fault(
        f"ClusterPolicy {name} has mig-manager read the ConfigMap {_config(policy) or 'it makes'}",
        f"kubectl patch clusterpolicy {name} --type=merge -p '{json.dumps(patch)}'",
    )


def _config(policy: Json) -> str:
    return str(policy.get("spec", {}).get("migManager", {}).get("config", {}).get("name", ""))
