"""What the replicas of an idle service cost an hour, and the least that its floor could cost.

The nodes of tier Reserved are paid anyway, so they count 0.
"""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

from tessera.api.ref import Ref
from tessera.domain.hardware.pools import weight_of
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.resources.manifest import ObjectKey
from tests.floors.kube import FloorKube

# What a pod costs an hour, by the label of its nodes and the resource of its device.
_Prices = dict[tuple[str, str], Decimal]


def dollars_above_cheapest(kube: FloorKube, service: Ref, floor: int) -> Decimal:
    """Return how much less `floor` pods could cost on the devices of a service and free ones."""
    key = ObjectKey(INFERENCE_SERVICES.plural, service.namespace, service.name)
    allowed = kube.objects[key]["spec"].get("placement", {}).get("pools", ())
    prices = _prices(kube, allowed)
    own = Counter[tuple[str, str]]()
    for _, pod in kube.service_pods(service.namespace, service.name):
        if pod.node is not None and not pod.terminating:
            label = kube.node(pod.node).labels["pool"]
            own.update((label, resource) for resource in pod.devices)
    available = own + Counter(dict(_free_devices(kube)))
    costs = sorted(
        price for each, price in prices.items() for _ in range(min(floor, available[each]))
    )
    current = sum((prices.get(each, Decimal(0)) * count for each, count in own.items()), Decimal(0))
    return max(Decimal(0), current - sum(costs[:floor], Decimal(0)))


def _prices(kube: FloorKube, allowed: list[str]) -> _Prices:
    prices: _Prices = {}
    for key, body in kube.objects.items():
        if key.plural != ACCELERATOR_POOLS.plural or (allowed and key.name not in allowed):
            continue
        spec = body["spec"]
        per_gpu = Decimal(spec["prices"][0]["perGPUHour"])
        for name in kube.nodes():
            node = kube.node(name)
            if not spec["nodeSelector"].items() <= node.labels.items():
                continue
            for resource in node.allocatable:
                weight = weight_of(node.labels["nvidia.com/gpu.product"], resource)
                is_paid = spec["tier"] == "Reserved"
                prices[node.labels["pool"], resource] = Decimal(0) if is_paid else per_gpu * weight
    return prices


def _free_devices(kube: FloorKube) -> Iterator[tuple[tuple[str, str], int]]:
    free = Counter[tuple[str, str]]()
    for name in kube.nodes():
        for resource, count in kube.free_devices(name).items():
            free[kube.node(name).labels["pool"], resource] += count
    yield from free.items()
