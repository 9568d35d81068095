"""Labels and taints of a node: those of the cloud and those of GPU feature discovery."""

from collections import Counter
from collections.abc import Iterator

from tessera.domain.hardware.gpu_catalog import Product
from tessera.domain.hardware.gpu_models import find_gpu_model
from world.fleet import Cloud, Node, Taint
from world.mig import MEDIA, PlacedSlice
from world.product_names import engines, product_names

DRIVER, CUDA = "580.95.05", "13.0"
# Parts of the GPU operator, which marks with a label the nodes that each runs on.
DEPLOYED = (
    "container-toolkit", "dcgm", "dcgm-exporter", "device-plugin", "driver",
    "gpu-feature-discovery", "mig-manager", "node-status-exporter", "operator-validator",
)  # fmt: skip

ZONES: dict[Cloud, tuple[str, str]] = {
    "aws": ("us-east-1", "us-east-1a"),
    "gcp": ("us-central1", "us-central1-a"),
    "azure": ("eastus", "eastus-1"),
    "onPrem": ("", ""),
}
PLAIN_MACHINE: dict[Cloud, str] = {
    "aws": "m7i.4xlarge",
    "gcp": "n2-standard-16",
    "azure": "Standard_D16s_v5",
    "onPrem": "",
}


def labels(node: Node, *, discovered: bool = True) -> dict[str, str]:
    """All labels of a node; those of the fleet file win.

    A node has those of feature discovery only once that has looked.
    """
    node_labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    node_labels |= _topology_labels(node) | _capacity_type(node)
    node_labels |= deploy_labels(node)
    if discovered:
        node_labels |= discovery_labels(node)
    elif node.gpus:
        node_labels["nvidia.com/gpu.present"] = "true"
    return node_labels | dict(node.labels)


def taints(node: Node) -> list[Taint]:
    """GKE may and AKS does taint its spot nodes; EKS does not."""
    keys: dict[Cloud, tuple[str, str]] = {
        "gcp": ("cloud.google.com/gke-spot", "true"),
        "azure": ("kubernetes.azure.com/scalesetpriority", "spot"),
    }
    node_taints = list(node.taints)
    if node.tier == "Spot" and node.cloud in keys:
        key, value = keys[node.cloud]
        node_taints.append(Taint(key=key, value=value))
    return node_taints


def provider_id(node: Node) -> str:
    zone = node.zone or ZONES[node.cloud][1]
    prefixes: dict[Cloud, str] = {
        "aws": f"aws:///{zone}/",
        "gcp": f"gce://world/{zone}/",
        "azure": "azure:///subscriptions/world/virtualMachines/",
        "onPrem": "world://",
    }
    return prefixes[node.cloud] + node.name


def _instance_type(node: Node) -> str:
    if node.product is None or node.cloud == "onPrem":
        return PLAIN_MACHINE[node.cloud]
    return str(getattr(product_names(node.product), node.cloud))


def _topology_labels(node: Node) -> dict[str, str]:
    region, zone = ZONES[node.cloud]
    zone = node.zone or zone
    topology_labels = {
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone,
        "node.kubernetes.io/instance-type": _instance_type(node),
    }
    return {key: value for key, value in topology_labels.items() if value}


def _capacity_type(node: Node) -> dict[str, str]:
    """How the cloud says what kind of purchase a node is; on premises no label says it.

    On AWS fleets meet the label of a managed node group or Karpenter's; the nodes carry both.
    """
    spot = node.tier == "Spot"
    karpenter = {"Reserved": "reserved", "OnDemand": "on-demand", "Spot": "spot"}
    match node.cloud:
        case "aws":
            return {
                "eks.amazonaws.com/capacityType": "SPOT" if spot else "ON_DEMAND",
                "karpenter.sh/capacity-type": karpenter[node.tier],
            }
        case "gcp":
            type_labels = {"cloud.google.com/gke-provisioning": "spot" if spot else "standard"}
            if node.product is not None:
                type_labels["cloud.google.com/gke-accelerator"] = product_names(node.product).gke
            return type_labels | ({"cloud.google.com/gke-spot": "true"} if spot else {})
        case "azure":
            type_labels = (
                {} if node.product is None else {"kubernetes.azure.com/accelerator": "nvidia"}
            )
            return type_labels | ({"kubernetes.azure.com/scalesetpriority": "spot"} if spot else {})
        case "onPrem":
            return {}


def deploy_labels(node: Node) -> dict[str, str]:
    """Return the labels of the parts of the GPU operator that run on a node."""
    if not node.gpus:
        return {}
    absent = {"mig-manager"} if node.mig_manager is None else set()
    return {f"nvidia.com/gpu.deploy.{part}": "true" for part in DEPLOYED if part not in absent}


def discovery_labels(node: Node) -> dict[str, str]:
    """What feature discovery writes with `mig.strategy=mixed`."""
    product = node.product
    if product is None or not node.gpus:
        return {}
    names = product_names(product)
    major, minor = names.compute.split(".")
    has_whole_gpu = any(gpu is None for gpu in node.gpus)
    gpu_labels = {
        "gpu.present": "true",
        "gpu.product": product.product,
        "gpu.count": str(len(node.gpus)),
        "gpu.memory": str(product.memory_mib),
        # GPUs in MIG mode are counted, but are not offered for sharing.
        "gpu.replicas": "1" if has_whole_gpu else "0",
        "gpu.sharing-strategy": "none",
        "gpu.family": names.family,
        "gpu.compute.major": major,
        "gpu.compute.minor": minor,
        "gpu.machine": _instance_type(node) or "PowerEdge-XE9680",
        "gpu.mode": "compute",
        "mig.capable": str(find_gpu_model(product.product) is not None).lower(),
        "mig.strategy": "mixed",
        "mps.capable": "false",
    }
    gpu_labels |= dict(_versions())
    for profile, slices in _by_profile(node).items():
        gpu_labels |= _slice_labels(product, profile, slices)
    return {f"nvidia.com/{key}": value for key, value in gpu_labels.items()}


def _versions() -> Iterator[tuple[str, str]]:
    for part, value in zip(("major", "minor", "revision"), DRIVER.split("."), strict=True):
        yield f"cuda.driver-version.{part}", value
    yield "cuda.driver-version.full", DRIVER
    for part, value in zip(("major", "minor"), CUDA.split("."), strict=True):
        yield f"cuda.runtime-version.{part}", value
    yield "cuda.runtime-version.full", CUDA


def _by_profile(node: Node) -> dict[str, list[PlacedSlice]]:
    slices_by_profile: dict[str, list[PlacedSlice]] = {}
    for gpu in node.gpus:
        for placed in gpu or ():
            slices_by_profile.setdefault(placed.profile, []).append(placed)
    return dict(sorted(slices_by_profile.items()))


def _slice_labels(product: Product, profile: str, slices: list[PlacedSlice]) -> dict[str, str]:
    mig_profile = slices[0].slice
    name = profile.replace("+", ".")
    values: dict[str, int | str] = {
        "count": len(slices),
        "replicas": 1,
        "product": f"{product.product}-MIG-{name}",
        "memory": mig_profile.memory_mib,
        "multiprocessors": mig_profile.multiprocessors,
        "slices.gi": mig_profile.compute_slices,
        "slices.ci": mig_profile.compute_slices,
    }
    counts = engines(product, mig_profile, media=profile.endswith(MEDIA))
    values |= {f"engines.{engine}": count for engine, count in counts.items()}
    return {f"mig-{name}.{key}": str(value) for key, value in values.items()}


def resources(node: Node) -> dict[str, str]:
    """Capacity of a node as its fleet file says; GPUs and slices are part of it."""
    offered = Counter(
        "nvidia.com/gpu" if placed is None else placed.resource
        for gpu in node.gpus
        for placed in (gpu if gpu is not None else (None,))
    )
    return basic_resources(node) | {
        resource: str(count) for resource, count in sorted(offered.items())
    }


def basic_resources(node: Node) -> dict[str, str]:
    """What a machine has without its GPUs."""
    return {
        "cpu": str(node.cpu),
        "memory": f"{node.memory_gib}Gi",
        "ephemeral-storage": "1000Gi",
        "pods": "110",
        **{resource: str(count) for resource, count in node.resources.items()},
    }
