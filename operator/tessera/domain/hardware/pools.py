"""Discovery: the nodes, devices and prices of each AcceleratorPool."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal

from tessera.api.accelerator_pool import (
    PRODUCT_LABEL,
    AcceleratorPoolSpec,
    Price,
    ProvisioningStatus,
    SpotStatus,
    Tier,
    Toleration,
)
from tessera.api.pool_reasons import Discovered, NodesProvisioned, PoolAccepted
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted, first_names, parse_decimal
from tessera.domain import money
from tessera.domain.hardware.device import (
    GPU,
    MIG_PREFIX,
    Hardware,
    slice_hardware,
    whole_gpu_hardware,
)
from tessera.domain.hardware.gpu_catalog import Product, nearest_products, products
from tessera.domain.hardware.gpu_layouts import geometry_problem
from tessera.domain.hardware.gpu_models import WHOLE_GPU, find_gpu_model
from tessera.domain.hardware.node_devices import gpus_in_mig_mode, offered_nodes, product_of
from tessera.domain.hardware.node_templates import (
    StartableNodes,
    startable_nodes,
    template_labels,
    template_node,
    template_problem,
    template_tolerations,
)
from tessera.domain.hardware.weights import billing_weight, selection_weight
from tessera.domain.incremental import reused, tabulated
from tessera.domain.names import Variant
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Node, Pod, Pool, Ref
from tessera.domain.steps import Step, planner_error

_GPU_COUNTS = (1, 2, 4, 8)
# It leads the profile that the strategy `single` adds to a product, or `INVALID`.
_MIG_SUFFIX = "-MIG-"
# Far above any GPU, and small enough for every product of it.
_MAX_MIB = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOffer:
    """Hardware of a pool, with the number of replicas that it holds and the price of one."""

    pool: str
    tier: Tier
    node_selector: Mapping[str, str]
    hardware: Hardware
    replicas: int
    """Replicas that the ready nodes could hold if nothing else ran. Hardware that only nodes that
    are not ready have is offered with 0, so that what runs there stays placed."""
    tariff: money.Tariff
    """Dated prices by which one replica is billed."""
    hourly: money.Money
    """Billed price of one replica for an hour today."""
    comparison_price: money.Money
    """Price of an hour by which hardware is compared; it includes what a layout strands."""
    tolerations: tuple[Toleration, ...] = ()
    """Tolerations of the nodes' taints."""
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    needs_repartition: bool = False
    """No GPU instance of the profile exists yet."""
    is_partitioned_now: bool = False
    """None exists, on a pool of which a node gets another layout at this moment."""
    in_layout: bool | None = None
    """Whether the pool's `spec.mig.layout` has such slices; those that it has not go."""
    startable: StartableNodes | None = None
    """Nodes that an autoscaler may add to the pool; None where it adds none of this hardware."""
    startable_replicas: int = 0
    """Replicas among `replicas` that need nodes that do not exist yet."""
    preemptions_per_hour: Decimal = Decimal(0)
    """How often a node of a spot pool is taken while pods run on it, as measured."""
    backoff_until: datetime | None = None
    """Until when the pool offers existing nodes alone, since none came; None if it offers all."""

    def variant(self, precision: str | None) -> Variant:
        """Return the variant of replicas on it."""
        return Variant(self.pool, self.hardware.instance, precision)

    @property
    def awaits_nodes(self) -> bool:
        """Return whether pods that find no device wait for nodes, and not for those of others."""
        return self.startable is not None or self.backoff_until is not None

    @property
    def exists(self) -> bool:
        """Return whether nodes that exist have it, or could with another layout."""
        waits = self.startable_replicas or self.backoff_until is not None
        return self.replicas > self.startable_replicas or not waits

    @property
    def layout_profile(self) -> str | None:
        """Return the profile by its name in layout plans; None for several GPUs."""
        if self.hardware.devices > 1:
            return None
        return self.hardware.profile or WHOLE_GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool with the nodes and devices that its selector matches."""

    pool: Pool
    accepted: StatusVerdict[PoolAccepted]
    discovered: StatusVerdict[Discovered]
    product: str | None = None
    node_names: frozenset[str] = frozenset()
    odd_nodes: frozenset[str] = frozenset()
    """Nodes of another product: unused, and billed by the pool's prices all the same."""
    nodes: int = 0
    ready_nodes: int = 0
    gpus: int = 0
    slices: tuple[tuple[str, int], ...] = ()
    devices_by_node: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The devices that each schedulable node offers, by resource."""
    price: Price | None = None
    offers: tuple[HardwareOffer, ...] = ()
    startable: StartableNodes | None = None
    """Nodes that an autoscaler may add; None without a usable `spec.nodeTemplate`, or while the
    pool backs off."""
    provisioning: ProvisioningStatus | None = None
    """How its nodes came; None without `spec.nodeTemplate`."""
    nodes_provisioned: StatusVerdict[NodesProvisioned] | None = None
    spot: SpotStatus | None = None
    """How often its nodes are taken; None if none was."""
    pods_to_explain: tuple[Pod, ...] = ()
    """Pods that wait long for a node or an image, whose Events say why."""


@reused
def discover(pools: Sequence[Pool], nodes: Sequence[Node], today: date) -> tuple[PoolView, ...]:
    """Return every pool with its nodes, devices and price of the day, in the order of names."""
    by_age = sorted(pools, key=lambda pool: (pool.created, pool.name))
    selected = {
        pool.name: [
            node for node in nodes if pool.spec.node_selector.items() <= node.labels.items()
        ]
        for pool in by_age
        if pool.spec is not None
    }
    owners: dict[str, str] = {}
    for name, pool_nodes in selected.items():
        for node in pool_nodes:
            owners.setdefault(node.name, name)
    # The pools that the nodes of templates would belong to, in the order of age as above.
    oldest_first = [(pool.name, pool.spec) for pool in by_age if pool.spec is not None]
    template_owners = {
        name: next(
            older
            for older, other in oldest_first
            if other.node_selector.items() <= template_labels(spec, spec.node_template).items()
        )
        for name, spec in oldest_first
        if spec.node_template is not None
    }
    return tuple(
        pool_view(pool, selected.get(pool.name, ()), owners, template_owners, today)
        for pool in sorted(pools, key=lambda pool: pool.name)
    )


def pools_by_node(views: Sequence[PoolView]) -> Mapping[str, PoolView]:
    """Return the pool by whose prices the pods of each node are billed."""
    return {name: view for view in views for name in view.node_names | view.odd_nodes}


def device_capacities(view: PoolView) -> Mapping[str, int]:
    """Return the devices of the pool by resource."""
    capacities = Counter[str]()
    for offer in view.offers:
        hardware = offer.hardware
        devices = offer.replicas * hardware.devices
        capacities[hardware.resource] = max(capacities[hardware.resource], devices)
    return capacities


def admits(spec: AcceleratorPoolSpec | None, namespace: str) -> bool:
    """Return whether the services and batches of a namespace may use a pool."""
    return spec is None or spec.namespaces is None or namespace in spec.namespaces


def _discover_pool(
    pool: Pool,
    selected: Sequence[Node],
    owners: Mapping[str, str],
    template_owners: Mapping[str, str],
    today: date,
) -> PoolView:
    """Return the view of a pool; a node that two pools select belongs to the older one.

    Nodes of others say nothing of a pool that gets nodes by its template: any node can take the
    label of a pool that has none yet.
    """
    if pool.spec is None:
        return _rejected_view(pool, PoolAccepted.INVALID_SPEC, pool.problem or "")
    price = money.price_on(pool.spec.prices, today)
    if price is None:
        first = min(price.from_ for price in pool.spec.prices)
        message = f"spec.prices begins on {first}; add a price from {today} or earlier"
        return _rejected_view(pool, PoolAccepted.PRICE_NOT_YET_EFFECTIVE, message)
    nodes = tuple(node for node in selected if owners[node.name] == pool.name)
    others = {node.name: owner for node in selected if (owner := owners[node.name]) != pool.name}
    new_owner = template_owners.get(pool.name)
    template_owner = new_owner if new_owner != pool.name else None
    if others and not nodes and (new_owner is None or template_owner is not None):
        message = (
            f"spec.nodeSelector matches only nodes of other pools ({_owned_by_others(others)}); "
            "narrow the labels of one of them"
        )
        return _rejected_view(pool, PoolAccepted.OVERLAPPING, message)
    return _discovered_view(pool, pool.spec, nodes, others, price, template_owner)


def _rejected_view(pool: Pool, reason: PoolAccepted, message: str) -> PoolView:
    discovered = StatusVerdict(Discovered.NOT_ACCEPTED, f"Accepted is False, {reason}: {message}")
    return PoolView(pool=pool, accepted=StatusVerdict(reason, message), discovered=discovered)


def _set_aside(error: Exception, pool: Pool, *_: object) -> PoolView:
    message = planner_error(error, "acceleratorpool", pool.name)
    return _rejected_view(pool, PoolAccepted.PLANNER_ERROR, message)


pool_view = Step(_discover_pool, _set_aside)


def _owned_by_others(owners: Mapping[str, str]) -> str:
    """Return the first nodes with their pools, and how many more there are."""
    return first_names([f"{name} of AcceleratorPool/{owners[name]}" for name in sorted(owners)])


def _accepted(
    spec: AcceleratorPoolSpec, product: str | None, price: Price, template_fault: str | None
) -> StatusVerdict[PoolAccepted]:
    """Return whether the spec fits the product of the pool."""
    gpu_model = find_gpu_model(product) if product is not None else None
    if spec.mig is not None and gpu_model is not None:
        problem = geometry_problem(gpu_model, spec.mig.layout)
        if problem is not None:
            return StatusVerdict(PoolAccepted.INVALID_LAYOUT, problem[1])
    if template_fault is not None:
        return StatusVerdict(PoolAccepted.INVALID_NODE_TEMPLATE, template_fault)
    price_text = f"{price.per_gpu_hour} {price.currency} per GPU and hour ({price.basis})"
    return StatusVerdict(PoolAccepted.VALID, price_text)


def _product_name(pool: Pool, nodes: Sequence[Node]) -> str | None:
    """Return the product of a pool: the known one while a node has it, else that of most nodes.

    The product of the template comes before that of most nodes if a node has it, where none has
    any, and where the pool was known by it: one node with another label changes no pool.
    """
    counts = Counter(name for node in nodes if (name := product_of(node)))
    known = pool.status.product
    if known in counts:
        return known
    template = pool.spec.node_template if pool.spec is not None else None
    if template is not None and (not counts or template.product in {*counts, known}):
        return template.product
    return min(counts, key=lambda name: (-counts[name], name), default=None)


def _discovered_view(
    pool: Pool,
    spec: AcceleratorPoolSpec,
    owned: tuple[Node, ...],
    others: Mapping[str, str],
    price: Price,
    template_owner: str | None,
) -> PoolView:
    name, template = _product_name(pool, owned), spec.node_template
    problem = None
    if template is not None:
        problem = template_problem(template, name, template_owner)
    startable = startable_nodes(template, owned) if template and problem is None else None
    odd = {
        node.name: other
        for node in owned
        if (other := product_of(node)) is not None and other != name
    }
    product = products().get(name) if name is not None else None
    offered = offered_nodes(product, [node for node in owned if node.name not in odd])
    nodes = offered.nodes
    ready = tuple(node for node in nodes if node.schedulable)
    gpus = sum(node.allocatable.get(GPU, 0) for node in ready)
    slices = +_slice_counts(ready)
    if startable is not None and not (gpus or slices):
        verdict = StatusVerdict(Discovered.NODES_ON_DEMAND, _nodes_on_demand(startable, nodes))
    else:
        verdict = _discovery_verdict(spec, nodes, name, gpus, slices)
    if offered.verdicts:
        sized = product and any(slice_hardware(product, profile) for profile in slices)
        verdict = _with_devices_set_aside(
            verdict, offered.verdicts, has_devices=bool(gpus or sized)
        )
    if problem is not None and not nodes:
        verdict = StatusVerdict(verdict.reason, f"{verdict.message}; {problem}")
    elif startable is not None and startable.count and verdict.reason is Discovered.DEVICES_FOUND:
        verdict = StatusVerdict(verdict.reason, f"{verdict.message}; {startable.text}")
    if odd or others:
        verdict = _with_nodes_set_aside(verdict, odd, others)
    return PoolView(
        pool=pool,
        accepted=_accepted(spec, name, price, problem),
        discovered=verdict,
        product=name,
        node_names=frozenset(node.name for node in nodes),
        odd_nodes=frozenset(odd),
        nodes=len(nodes),
        ready_nodes=len(ready),
        gpus=gpus,
        slices=tuple(sorted(slices.items())),
        devices_by_node={node.name: node.allocatable for node in ready},
        price=price,
        offers=()
        if product is None
        else _offers(pool.name, spec, product, nodes, price, startable),
        startable=startable,
    )


def _nodes_on_demand(startable: StartableNodes, nodes: Sequence[Node]) -> str:
    """Return what the pool has while none of its nodes offers a device."""
    if not nodes:
        return f"{startable.text}; an autoscaler adds nodes for pods that wait"
    return f"{startable.text}; {counted(len(nodes), 'node')} without a device that is ready"


def _discovery_verdict(
    spec: AcceleratorPoolSpec,
    nodes: tuple[Node, ...],
    name: str | None,
    gpus: int,
    slices: Mapping[str, int],
) -> StatusVerdict[Discovered]:
    selector = ",".join(f"{key}={value}" for key, value in sorted(spec.node_selector.items()))
    command = f"kubectl get nodes -l {selector}"
    if not nodes:
        return StatusVerdict(
            Discovered.NO_NODES, f"spec.nodeSelector matches no node: {command} shows 0"
        )
    has_devices = bool(gpus or slices)
    if name is None or not (has_devices or _MIG_SUFFIX in name):
        lacks, runs = "an allocatable GPU", "the device plugin and GPU feature discovery run"
        if has_devices:
            lacks, runs = f"the label {PRODUCT_LABEL}", "GPU feature discovery runs"
        return StatusVerdict(
            Discovered.NO_DEVICES,
            f"spec.nodeSelector matches {counted(len(nodes), 'node')} without {lacks}; check that "
            f"{runs} there: {command} -L {PRODUCT_LABEL}",
        )
    if name not in products():
        return StatusVerdict(Discovered.UNKNOWN_PRODUCT, _unknown_product(name))
    message = f"{counted(len(nodes), 'node')} with {format_devices(gpus, tuple(slices.items()))}"
    return StatusVerdict(Discovered.DEVICES_FOUND, message)


def _with_devices_set_aside(
    verdict: StatusVerdict[Discovered],
    not_offered: Sequence[StatusVerdict[Discovered]],
    *,
    has_devices: bool,
) -> StatusVerdict[Discovered]:
    """Return the verdict with the devices that are not offered, which may be all."""
    first, text = not_offered[0].reason, "; ".join(each.message for each in not_offered)
    if not (has_devices or first.is_true or verdict.reason is Discovered.NODES_ON_DEMAND):
        return StatusVerdict(first, text)
    reason = verdict.reason
    if reason is Discovered.DEVICES_FOUND:
        reason = first if first.is_true else Discovered.DEVICES_SET_ASIDE
    return StatusVerdict(reason, f"{verdict.message}; {text}")


def _with_nodes_set_aside(
    verdict: StatusVerdict[Discovered], odd: Mapping[str, str], others: Mapping[str, str]
) -> StatusVerdict[Discovered]:
    """Return the verdict with the nodes that the pool selects and does not use."""
    parts = [f"{name} is {product}" for name, product in sorted(odd.items())[:3]]
    if len(odd) > 3:
        parts.append(f"{len(odd) - 3} more have another product")
    if others:
        parts.append(_owned_by_others(others))
    message = (
        f"{verdict.message}; {counted(len(odd) + len(others), 'node')} set aside: "
        f"{', '.join(parts)}. Narrow spec.nodeSelector, or correct the labels of the nodes"
    )
    reason = Discovered.NODES_SET_ASIDE if verdict.reason.is_true else verdict.reason
    return StatusVerdict(reason, message)


def tier_by_pool(views: Sequence[PoolView]) -> Mapping[str, Tier | None]:
    """Return how the hardware of each pool is bought; None for a pool with an invalid spec."""
    return {view.pool.name: view.pool.spec.tier if view.pool.spec else None for view in views}


def tariff_of(
    view: PoolView, devices: Mapping[str, int], service: Ref | None = None
) -> money.Tariff | None:
    """Return what a pod with these devices is billed in a pool; None without a readable spec."""
    if view.pool.spec is None:
        return None
    product = view.product or ""
    weights = (weight_of(product, resource) * count for resource, count in devices.items())
    spec = view.pool.spec
    return money.Tariff(spec.prices, sum(weights, Decimal(0)), spec.tier, service)


@tabulated
def weight_of(product: str, resource: str) -> Decimal:
    """Return the share of a GPU that a device is billed; 0 for what is neither GPU nor slice.

    A slice that the product does not have costs as the smallest that any product calls so, and one
    that none has as a whole GPU.
    """
    if resource == GPU:
        return Decimal(1)
    if not resource.startswith(MIG_PREFIX):
        return Decimal(0)
    hardware = _resource_hardware(product, resource)
    candidates = (
        [hardware] if hardware else [_resource_hardware(name, resource) for name in products()]
    )
    weights = [billing_weight(candidate) for candidate in candidates if candidate is not None]
    return min(weights, default=Decimal(1))


@tabulated
def profile_of(product: str, resource: str) -> str:
    """Return the canonical name of a slice's profile, or the resource's own for an unknown one."""
    hardware = _resource_hardware(product, resource)
    return resource.removeprefix(MIG_PREFIX) if hardware is None else hardware.name


def _resource_hardware(product: str, resource: str) -> Hardware | None:
    catalog_product = products().get(product)
    return (
        slice_hardware(catalog_product, resource.removeprefix(MIG_PREFIX))
        if catalog_product and resource.startswith(MIG_PREFIX)
        else None
    )


def _unknown_product(product: str) -> str:
    message = (
        f"spec.nodeSelector matches {product}, which is none of the {len(products())} known "
        "products"
    )
    if _MIG_SUFFIX in product:
        if product.endswith("-INVALID"):
            message = (
                f"spec.nodeSelector matches {product}: its slices are not all alike, as "
                "mig.strategy=single needs"
            )
        return f"{message}; set mig.strategy=mixed in the GPU operator to use MIG slices"
    nearest = ", ".join(nearest_products(product)[:3])
    return f"{message}, such as {nearest}; add it to catalogs.gpus of the chart"


def format_devices(gpus: int, slices: Sequence[tuple[str, int]]) -> str:
    """Return devices as text for people: `2 GPUs, 4x 1g.10gb`."""
    parts = [counted(gpus, "GPU")] if gpus else []
    parts += [f"{count}x {profile}" for profile, count in sorted(slices)]
    return ", ".join(parts) or "nothing"


def _slice_counts(nodes: Sequence[Node]) -> Counter[str]:
    """Return the slices by the nodes' names of profiles; a kubelet may report a profile with 0."""
    counts: Counter[str] = Counter()
    for node in nodes:
        for resource, count in node.allocatable.items():
            if resource.startswith(MIG_PREFIX):
                counts[resource.removeprefix(MIG_PREFIX)] += count
    return counts


def _profile_names(nodes: Sequence[Node]) -> Sequence[str]:
    """Return the nodes' names of profiles, those with more slices on ready nodes later."""
    # A pod can request only one of two names of a profile: the later one wins in the callers.
    count, ready = _slice_counts(nodes), _slice_counts([node for node in nodes if node.schedulable])
    return sorted(count, key=lambda name: (ready[name], count[name], name))


def _offers(
    pool: str,
    spec: AcceleratorPoolSpec,
    product: Product,
    existing: tuple[Node, ...],
    price: Price,
    startable: StartableNodes | None,
) -> tuple[HardwareOffer, ...]:
    """Return the hardware of existing nodes, and of those that an autoscaler may add."""
    hourly = money.money(price.per_gpu_hour, price.currency)
    new_nodes = _new_nodes(spec, product, existing, startable)
    nodes = (*existing, *new_nodes)
    candidates = [*_existing_slices(product, nodes), *_whole_gpu_options(product, nodes)]
    existing_profiles = {hardware.profile for hardware, _, _ in candidates}
    candidates += [
        candidate
        for candidate in _possible_slices(spec, product, nodes)
        if candidate[0].profile not in existing_profiles
    ]
    layout = _layout_profiles(spec, product)
    tolerations = template_tolerations(spec)
    is_partitioned = any(TAINT in node.taints for node in existing)
    return tuple(
        HardwareOffer(
            pool=pool,
            tier=spec.tier,
            node_selector=spec.node_selector,
            hardware=hardware,
            replicas=replicas,
            tariff=money.Tariff(spec.prices, billing_weight(hardware), spec.tier),
            hourly=hourly.times(billing_weight(hardware)),
            comparison_price=hourly.times(weight),
            tolerations=tolerations,
            runtime_class_name=spec.runtime_class_name,
            scheduler_name=spec.scheduler_name,
            needs_repartition=needs_repartition,
            is_partitioned_now=needs_repartition and is_partitioned,
            in_layout=None
            if layout is None or hardware.profile is None
            else hardware.profile in layout,
            startable=startable if new_replicas else None,
            startable_replicas=new_replicas,
        )
        for hardware, replicas, weight in candidates
        for new_replicas in (_replicas_on(new_nodes, hardware),)
        for needs_repartition in (
            hardware.profile is not None and hardware.profile not in existing_profiles,
        )
    )


def _new_nodes(
    spec: AcceleratorPoolSpec,
    product: Product,
    existing: tuple[Node, ...],
    startable: StartableNodes | None,
) -> tuple[Node, ...]:
    """Return the nodes that an autoscaler may add; slices have the names of existing nodes."""
    if startable is None or spec.node_template is None:
        return ()
    names = {
        hardware.profile: hardware.resource
        for name in _profile_names(existing)
        if (hardware := slice_hardware(product, name)) is not None
    }
    node = template_node(spec, spec.node_template)
    allocatable = {
        resource if hardware is None else names.get(hardware.profile, resource): count
        for resource, count in node.allocatable.items()
        for hardware in (_resource_hardware(product.product, resource),)
    }
    return (replace(node, allocatable=allocatable),) * startable.count


def _replicas_on(nodes: Sequence[Node], hardware: Hardware) -> int:
    return sum(node.allocatable.get(hardware.resource, 0) // hardware.devices for node in nodes)


def _layout_profiles(spec: AcceleratorPoolSpec, product: Product) -> frozenset[str] | None:
    """Return the profiles of a layout that the spec fixes and GPUs of the product can have."""
    gpu_model = find_gpu_model(product.product)
    if spec.mig is None or not spec.mig.layout or gpu_model is None:
        return None
    if geometry_problem(gpu_model, spec.mig.layout) is not None:
        return None
    profiles = (gpu_model.find_profile(name) for name in spec.mig.layout)
    return frozenset(profile.name for profile in profiles if profile is not None)


def _existing_slices(
    product: Product, nodes: tuple[Node, ...]
) -> list[tuple[Hardware, int, Decimal]]:
    all_slices, ready = (
        _slice_counts(nodes),
        _slice_counts([node for node in nodes if node.schedulable]),
    )
    named_slices = [
        (hardware, name)
        for name in _profile_names(nodes)
        if all_slices[name]
        and (hardware := slice_hardware(product, name, _label_mib(nodes, f"mig-{name}")))
        is not None
    ]
    total_weight = sum(
        (billing_weight(mig_slice) * all_slices[name] for mig_slice, name in named_slices),
        Decimal(0),
    )
    partitioned_gpus = gpus_in_mig_mode(find_gpu_model(product.product), nodes)
    slice_by_profile = {mig_slice.profile: (mig_slice, name) for mig_slice, name in named_slices}
    return [
        (mig_slice, ready[name], selection_weight(mig_slice, partitioned_gpus, total_weight))
        for _, (mig_slice, name) in sorted(slice_by_profile.items())
    ]


def _possible_slices(
    spec: AcceleratorPoolSpec, product: Product, nodes: tuple[Node, ...]
) -> list[tuple[Hardware, int, Decimal]]:
    """Return slices that a new layout could create, or that `spec.mig.layout` will."""
    gpu_model = find_gpu_model(product.product)
    layout = _layout_profiles(spec, product)
    if gpu_model is None or (layout is None and not plans_layouts(spec)):
        return []
    names = {
        instance_profile.name: name
        for name in _profile_names(nodes)
        if (instance_profile := gpu_model.find_profile(name)) is not None
    }
    profile_names = (
        names.get(candidate.name, candidate.name)
        for candidate in gpu_model.profiles
        if (not candidate.has_media_engines if layout is None else candidate.name in layout)
    )
    hardware_slices = (
        slice_hardware(product, name, _label_mib(nodes, f"mig-{name}")) for name in profile_names
    )
    # What a layout that does not exist yet would strand is not known: the billed price counts.
    return [
        (mig_slice, 0, billing_weight(mig_slice))
        for mig_slice in hardware_slices
        if mig_slice is not None
    ]


def plans_layouts(spec: AcceleratorPoolSpec | None) -> bool:
    """Return whether the pool's layouts are planned from what services need."""
    return spec is not None and spec.mig is not None and spec.mig.mode != "Static"


def _whole_gpu_options(
    product: Product, nodes: tuple[Node, ...]
) -> list[tuple[Hardware, int, Decimal]]:
    gpu_counts = [(node.allocatable.get(GPU, 0), node.schedulable) for node in nodes]
    memory = _label_mib(nodes, "gpu")
    largest = max((count for count, _ in gpu_counts), default=0)
    return [
        (
            whole_gpu_hardware(product, size, memory),
            sum(count // size for count, ready in gpu_counts if ready),
            Decimal(size),
        )
        for size in _GPU_COUNTS
        if size <= largest
    ]


def _label_mib(nodes: tuple[Node, ...], device: str) -> int | None:
    """Return the smallest memory in MiB that GPU feature discovery reports for a device."""
    label = f"nvidia.com/{device}.memory"
    sizes_mib = [parse_decimal(node.labels.get(label, ""), _MAX_MIB) for node in nodes]
    return min((mib for mib in sizes_mib if mib is not None), default=None)
