"""Nodes that a pool may have and that do not exist yet, as `spec.nodeTemplate` describes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.accelerator_pool import (
    COUNT_LABEL,
    PRODUCT_LABEL,
    AcceleratorPoolSpec,
    NodeTaint,
    NodeTemplate,
    Toleration,
)
from tessera.api.meta import format_duration
from tessera.api.text import counted
from tessera.domain.hardware.device import GPU, is_gpu_resource, resource_of, slice_hardware
from tessera.domain.hardware.gpu_catalog import nearest_products, products
from tessera.domain.hardware.gpu_layouts import geometry_problem
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.observed.snapshot import Node

# Every engine pod tolerates this taint.
_GPU_TAINT = (GPU, "NoSchedule")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartableNodes:
    """How many nodes an autoscaler may still add to a pool."""

    existing: int
    """Nodes that offer devices."""
    max_nodes: int
    expected_start: timedelta

    @property
    def count(self) -> int:
        return max(0, self.max_nodes - self.existing)

    @property
    def text(self) -> str:
        """Return what exists and how long the rest takes: `0 of 4 nodes exist, ...`."""
        nodes = counted(self.max_nodes, "node")
        verb = "exists" if self.max_nodes == 1 else "exist"
        start = format_duration(self.expected_start)
        return f"{self.existing} of {nodes} {verb}, expected start {start}"


def startable_nodes(template: NodeTemplate, nodes: Sequence[Node]) -> StartableNodes:
    """Return what may be added to a pool with these nodes; one without devices is still to come."""
    return StartableNodes(
        existing=sum(has_devices(node) for node in nodes),
        max_nodes=template.max_nodes,
        expected_start=template.expected_start,
    )


def has_devices(node: Node) -> bool:
    """Return whether the device plugin of a node offers GPUs or slices."""
    return any(count and is_gpu_resource(name) for name, count in node.allocatable.items())


def template_node(spec: AcceleratorPoolSpec, template: NodeTemplate) -> Node:
    """Return a new node of the pool, as it is once its devices are offered."""
    layout = _layout(spec, template)
    allocatable = {resource_of(profile): count * template.gpus for profile, count in layout.items()}
    return Node(
        name="",
        labels=template_labels(spec, template),
        schedulable=True,
        allocatable=allocatable or {GPU: template.gpus},
    )


def template_labels(spec: AcceleratorPoolSpec, template: NodeTemplate) -> Mapping[str, str]:
    """Return the labels of a new node, with those of GPU feature discovery."""
    discovered = {PRODUCT_LABEL: template.product, COUNT_LABEL: str(template.gpus)}
    return {**template.labels, **spec.node_selector, **discovered}


def template_problem(template: NodeTemplate, product: str | None, owner: str | None) -> str | None:
    """Return why no node of the template is offered, None if they are.

    `product` is that of the pool's nodes, and `owner` the older pool that would get new ones.
    """
    if template.product not in products():
        nearest = ", ".join(nearest_products(template.product)[:3])
        return (
            f"spec.nodeTemplate.product: {template.product} is none of the {len(products())} known "
            f"products, such as {nearest}; correct it, or add it to catalogs.gpus of the chart"
        )
    if product not in (None, template.product):
        return (
            f"spec.nodeTemplate.product: {template.product}, but the nodes of the pool have "
            f"{product}; correct it, or give the new nodes a pool of their own"
        )
    if owner is not None:
        return (
            f"spec.nodeTemplate: AcceleratorPool/{owner}, which is older, selects the new nodes "
            "too; narrow spec.nodeSelector of one of them"
        )
    return _layout_problem(template) if template.mig_layout else None


def _layout_problem(template: NodeTemplate) -> str | None:
    """Return why no GPU of the product can have the slices of the template."""
    gpu_model = find_gpu_model(template.product)
    if gpu_model is None:
        return f"spec.nodeTemplate.migLayout: {template.product} has no MIG; remove it"
    field, product = "spec.nodeTemplate.migLayout", products()[template.product]
    if problem := geometry_problem(gpu_model, template.mig_layout, field):
        return problem[1]
    if not any(slice_hardware(product, profile) for profile in template.mig_layout):
        return f"{field}: the size of no slice is known; name another profile"
    return None


def template_tolerations(spec: AcceleratorPoolSpec) -> tuple[Toleration, ...]:
    """Return the tolerations of the pool, with those of taints of the template that they lack."""
    taints = spec.node_template.taints if spec.node_template is not None else ()
    missing = [
        Toleration(key=taint.key, value=taint.value, effect=taint.effect)
        if taint.value
        else Toleration(key=taint.key, operator="Exists", effect=taint.effect)
        for taint in taints
        if (taint.key, taint.effect) != _GPU_TAINT
        and not any(_tolerates(toleration, taint) for toleration in spec.tolerations)
    ]
    return (*spec.tolerations, *dict.fromkeys(missing))


def _tolerates(toleration: Toleration, taint: NodeTaint) -> bool:
    return (
        toleration.key in (None, taint.key)
        and toleration.effect in (None, taint.effect)
        and toleration.toleration_seconds is None
        and (toleration.operator == "Exists" or (toleration.value or "") == taint.value)
    )


def _layout(spec: AcceleratorPoolSpec, template: NodeTemplate) -> Mapping[str, int]:
    """Return the slices of a new GPU; empty for a whole one."""
    if template.mig_layout or spec.mig is None:
        return template.mig_layout
    return spec.mig.layout
