"""Pools and GPU nodes: what is there, what it costs, and what hides it."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from tessera.adapters import wire
from tessera.cli.checks.finding import Finding, State, Ward, listed
from tessera.cli.cluster import Json
from tessera.domain.money import price_on
from tessera.domain.pools import PRODUCT_LABEL, PoolView, discover
from tessera.resources.kinds import ACCELERATOR_POOLS, NODES

PRICES_AGE = timedelta(days=90)
_VENDOR = "nvidia.com/"
_STRATEGY, _CAPABLE = "nvidia.com/mig.strategy", "nvidia.com/mig.capable"
_SIGNS = {
    "nvidia.com/gpu.present": "true",
    "feature.node.kubernetes.io/pci-10de.present": "true",
    "feature.node.kubernetes.io/pci-0302_10de.present": "true",
}
_CLOUD_SIGNS = ("cloud.google.com/gke-accelerator", "k8s.amazonaws.com/accelerator")
_GFD = (
    "install GPU feature discovery there, which the GPU operator brings: "
    f"kubectl get nodes -L {PRODUCT_LABEL} must show a product"
)


async def pools(ward: Ward) -> Sequence[Finding]:
    """Is hardware found behind every pool, and is its price known?"""
    bodies = await ward.reader.all(ACCELERATOR_POOLS)
    nodes = [wire.node(body) for body in await ward.reader.all(NODES)]
    if not bodies:
        mend = "describe the GPU nodes and what they cost: examples/00-pools.yaml"
        return [Finding("pools", State.PROBLEM, "there is no AcceleratorPool", mend)]
    views = discover([wire.pool(body) for body in bodies], nodes, ward.at.date())
    return [finding for view in views for finding in _judged(view, ward)]


def _judged(view: PoolView, ward: Ward) -> Iterator[Finding]:
    name = f"pool {view.pool.name}"
    for verdict in (view.accepted, view.discovered):
        if not verdict.reason.is_true:
            mend = f"kubectl get acceleratorpool {view.pool.name} -o yaml"
            yield Finding(name, State.PROBLEM, f"{verdict.reason}: {verdict.message}", mend)
            return
    told = f"{view.discovered.message} of {view.product}, {view.accepted.message}"
    if view.ready_nodes < view.nodes:
        away = view.nodes - view.ready_nodes
        mend = "kubectl get nodes; what is NotReady or cordoned offers nothing"
        yield Finding(name, State.WARNING, f"{told}; {away} nodes are not ready", mend)
        return
    spec = view.pool.spec
    price = price_on(spec.prices, ward.at.date()) if spec is not None else None
    if price is not None and ward.at.date() - price.from_ > PRICES_AGE:
        days = (ward.at.date() - price.from_).days
        mend = "if it still holds, add it again to spec.prices with a new day in `from`"
        yield Finding(name, State.WARNING, f"{told}; that price is {days} days old", mend)
        return
    yield Finding(name, State.OK, told)


async def gpu_nodes(ward: Ward) -> Sequence[Finding]:
    """Do the nodes with GPUs say which, how they are cut, and offer them?"""
    selectors = [
        body.get("spec", {}).get("nodeSelector", {})
        for body in await ward.reader.all(ACCELERATOR_POOLS)
    ]
    nodes = [body for body in await ward.reader.all(NODES) if _has_gpus(body, selectors)]
    if not nodes:
        mend = (
            "are there GPU nodes, with NVIDIA's GPU operator? kubectl get nodes "
            f"-L {PRODUCT_LABEL}; an autoscaler may have none now"
        )
        return [Finding("gpu nodes", State.WARNING, "no node shows a GPU", mend)]
    found = list(_faults(nodes))
    return found or [Finding("gpu nodes", State.OK, f"{len(nodes)} nodes, labelled and offered")]


def _has_gpus(body: Json, selectors: Sequence[Json]) -> bool:
    """By what it offers, by a sign besides feature discovery, or since a pool says so."""
    labels = body["metadata"].get("labels", {})
    capacity = body.get("status", {}).get("capacity", {})
    return (
        any(name.startswith(_VENDOR) for name in capacity)
        or any(labels.get(name) == value for name, value in _SIGNS.items())
        or any(name in labels for name in (*_CLOUD_SIGNS, PRODUCT_LABEL))
        or any(
            selector and all(labels.get(name) == value for name, value in selector.items())
            for selector in selectors
        )
    )


def _faults(nodes: Sequence[Json]) -> Iterator[Finding]:
    unlabelled = [_name(body) for body in nodes if PRODUCT_LABEL not in _labels(body)]
    if unlabelled:
        told = f"{len(unlabelled)} without {PRODUCT_LABEL}: {listed(unlabelled)}"
        yield Finding("gpu labels", State.PROBLEM, told, _GFD)
    uncut = [
        _name(body)
        for body in nodes
        if _labels(body).get(_CAPABLE) == "true" and _labels(body).get(_STRATEGY) != "mixed"
    ]
    if uncut:
        told = f"{len(uncut)} whose {_STRATEGY} is not mixed: {listed(uncut)}"
        mend = "set mig.strategy: mixed in the GPU operator; slices are named only then"
        yield Finding("mig strategy", State.PROBLEM, told, mend)
    empty = [_name(body) for body in nodes if not _offers(body)]
    if empty:
        told = f"{len(empty)} offer no {_VENDOR} resource: {listed(empty)}"
        mend = (
            "is NVIDIA's device plugin running there? kubectl get pods -A -o wide "
            f"--field-selector spec.nodeName={empty[0]}"
        )
        yield Finding("device plugin", State.PROBLEM, told, mend)


def _name(body: Json) -> str:
    return str(body["metadata"]["name"])


def _labels(body: Json) -> Json:
    found: Json = body["metadata"].get("labels", {})
    return found


def _offers(body: Json) -> bool:
    offered = body.get("status", {}).get("allocatable", {})
    return any(name.startswith(_VENDOR) and count != "0" for name, count in offered.items())
