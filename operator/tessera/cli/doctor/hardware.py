"""Checks of pools and GPU nodes: labels, devices and prices."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from tessera.api.accelerator_pool import COUNT_LABEL, PRODUCT_LABEL
from tessera.api.meta import find_condition
from tessera.api.pool_reasons import Discovered
from tessera.api.text import counted, first_names
from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import CheckContext, Finding, Findings, ok, problem, warning
from tessera.domain.hardware.device import is_gpu_resource
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.domain.money import price_on
from tessera.resources.api_resources import NODES

# List prices change about once a year.
MAX_PRICE_AGE = timedelta(days=365)
_STRATEGY_LABEL, _CAPABLE_LABEL = "nvidia.com/mig.strategy", "nvidia.com/mig.capable"
_GPU_LABELS = {
    "nvidia.com/gpu.present": "true",
    "feature.node.kubernetes.io/pci-10de.present": "true",
    "feature.node.kubernetes.io/pci-0302_10de.present": "true",
}
_CLOUD_GPU_LABELS = ("cloud.google.com/gke-accelerator", "k8s.amazonaws.com/accelerator")
_GFD_FIX = (
    "install GPU feature discovery, a part of the GPU operator: "
    f"kubectl get nodes -L {PRODUCT_LABEL} must show a product"
)
# The message of the others says what to do.
_FIXES = {
    Discovered.NODES_SET_ASIDE: (
        "kubectl get nodes --show-labels: narrow the pools' selectors or correct the labels"
    ),
    Discovered.DEVICES_SET_ASIDE: "kubectl describe node shows Allocatable, and labels of sharing",
    Discovered.INCONSISTENT_LABELS: (
        f"kubectl get nodes -L {COUNT_LABEL} and kubectl describe node must show the same GPUs"
    ),
}


async def check_pools(context: CheckContext) -> Findings:
    """Check that every pool has hardware and a current price."""
    pools, nodes = await context.pools(), await context.nodes()
    if not pools:
        fix = "create pools with the GPU nodes and their prices, as in examples/00-pools.yaml"
        return problem("pools", "no AcceleratorPool exists", fix)
    views = discover(pools, nodes, context.at.date())
    return [_pool_finding(view, context) for view in views]


def _pool_finding(view: PoolView, context: CheckContext) -> Finding:
    name = f"pool {view.pool.name}"
    for verdict in (view.accepted, view.discovered):
        if not verdict.reason.is_true:
            fix = f"kubectl get acceleratorpool {view.pool.name} -o yaml"
            return problem(name, f"{verdict.reason}: {verdict.message}", fix)
    message = f"{view.discovered.message} of {view.product}, {view.accepted.message}"
    if view.startable is not None:
        message = f"{view.product}: {view.discovered.message}, {view.accepted.message}"
    if view.discovered.reason in _FIXES:
        return warning(name, message, _FIXES[view.discovered.reason])
    provisioned = find_condition(view.pool.status.conditions, "NodesProvisioned")
    if provisioned is not None and provisioned.status == "False":
        fix = f"kubectl get acceleratorpool {view.pool.name} -o yaml: status.provisioning"
        return warning(name, f"{message}; {provisioned.reason}: {provisioned.message}", fix)
    if view.ready_nodes < view.nodes:
        not_ready = view.nodes - view.ready_nodes
        fix = "kubectl get nodes: a node that is NotReady or cordoned offers no devices"
        return warning(name, f"{message}; not ready: {counted(not_ready, 'node')}", fix)
    spec = view.pool.spec
    price = price_on(spec.prices, context.at.date()) if spec is not None else None
    if price is not None and context.at.date() - price.from_ > MAX_PRICE_AGE:
        fix = "check it, and add an entry with a newer day in `from` to spec.prices"
        return warning(name, f"{message}; the price is that of {price.from_}", fix)
    return ok(name, message)


async def check_gpu_nodes(context: CheckContext) -> Findings:
    """Check labels, MIG strategy and device plugin of the nodes with GPUs."""
    pools = [body.get("spec", {}) for body in await context.reader.list_objects(ACCELERATOR_POOLS)]
    selectors = [pool.get("nodeSelector", {}) for pool in pools]
    nodes = [
        body for body in await context.reader.list_objects(NODES) if _has_gpus(body, selectors)
    ]
    if not nodes and (on_demand := sum("nodeTemplate" in pool for pool in pools)):
        message = f"no node has a GPU yet; {counted(on_demand, 'pool')} with spec.nodeTemplate"
        return ok("gpu nodes", message)
    if not nodes:
        fix = (
            f"check for GPU nodes and NVIDIA's GPU operator: kubectl get nodes -L {PRODUCT_LABEL}; "
            "an autoscaler may have scaled them to zero"
        )
        return warning("gpu nodes", "no node has a GPU", fix)
    fine = ok("gpu nodes", f"{counted(len(nodes), 'node')} with labels and devices")
    return list(_node_findings(nodes)) or fine


def _has_gpus(body: Json, selectors: Sequence[Json]) -> bool:
    """Return whether resources, labels of clouds or discovery, or a pool's selector say so."""
    labels = body["metadata"].get("labels", {})
    capacity = body.get("status", {}).get("capacity", {})
    return (
        any(is_gpu_resource(name) for name in capacity)
        or any(labels.get(name) == value for name, value in _GPU_LABELS.items())
        or any(name in labels for name in (*_CLOUD_GPU_LABELS, PRODUCT_LABEL))
        or any(
            selector and all(labels.get(name) == value for name, value in selector.items())
            for selector in selectors
        )
    )


def _node_findings(nodes: Sequence[Json]) -> Iterator[Finding]:
    labels_of = {
        str(body["metadata"]["name"]): body["metadata"].get("labels", {}) for body in nodes
    }
    unlabeled = [name for name, labels in labels_of.items() if PRODUCT_LABEL not in labels]
    if unlabeled:
        missing = counted(len(unlabeled), "node")
        message = f"{missing} without {PRODUCT_LABEL}: {first_names(unlabeled, 5)}"
        yield problem("gpu labels", message, _GFD_FIX)
    unmixed = [
        name
        for name, labels in labels_of.items()
        if labels.get(_CAPABLE_LABEL) == "true" and labels.get(_STRATEGY_LABEL) != "mixed"
    ]
    if unmixed:
        message = f"{_STRATEGY_LABEL} is not mixed on {first_names(unmixed, 5)}"
        fix = "set mig.strategy: mixed in the GPU operator, which names slices by profile"
        yield problem("mig strategy", message, fix)
    empty = [str(body["metadata"]["name"]) for body in nodes if not _has_gpu_resource(body)]
    if empty:
        message = f"no nvidia.com/gpu or nvidia.com/mig- resource on {first_names(empty, 5)}"
        fix = (
            "check that NVIDIA's device plugin runs: kubectl get pods -A -o wide "
            f"--field-selector spec.nodeName={empty[0]}"
        )
        yield problem("device plugin", message, fix)


def _has_gpu_resource(body: Json) -> bool:
    allocatable = body.get("status", {}).get("allocatable", {})
    return any(is_gpu_resource(name) and count != "0" for name, count in allocatable.items())
