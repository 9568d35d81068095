"""`AcceleratorPool`: nodes with the same GPU product, bought in the same way."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from tessera.api.meta import (
    Amount,
    Conditions,
    DnsLabel,
    DnsSubdomain,
    Duration,
    LabelKey,
    LabelValue,
    StatusText,
    UnitPrice,
    Wire,
    between,
    name_rule,
    rule,
    rules_config,
    text_default,
)
from tessera.api.mig import Mig, MigStatus, Profile

# Labels by which GPU feature discovery names the product of a node and counts its GPUs.
PRODUCT_LABEL = "nvidia.com/gpu.product"
COUNT_LABEL = "nvidia.com/gpu.count"

# Node starts that a status remembers, and characters of what an autoscaler says of one.
MAX_STARTS = 8
MAX_WORDS = 300
# Preemptions that the status of a spot pool remembers.
MAX_PREEMPTIONS = 16

TaintEffect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
Tier = Literal["Reserved", "OnDemand", "Spot"]


class Price(Wire):
    """Price of one whole GPU from a given day on."""

    from_: Annotated[date, Field(alias="from")]
    """First day, in UTC, on which this price applies."""

    per_gpu_hour: Annotated[UnitPrice, Field(alias="perGPUHour")]
    """Price of one whole GPU per hour, including its share of the node."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """Currency as an ISO 4217 code, for example `USD`."""

    basis: Literal["List", "Reserved", "Negotiated", "Amortized", "Spot"] = "List"
    """Kind of price; `Amortized` spreads upfront payments over their term."""


class HourlyFactor(Wire):
    """A figure from an hour of the day on."""

    from_hour: Annotated[int, Field(ge=0, le=23)] = 0
    """First hour of the day, in UTC, for which it holds."""

    value: Amount
    """The figure."""


class EnergyFactors(Wire):
    """What a kilowatt-hour of the pool's nodes costs and emits, for reports alone: `prices` include
    the electricity already."""

    electricity_per_kwh: Annotated[
        tuple[HourlyFactor, ...], Field(alias="electricityPerKWh", max_length=24)
    ] = ()
    """Price of a kilowatt-hour, by hour of the day; one entry for a constant price."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """Currency of `electricityPerKWh` as an ISO 4217 code."""

    grams_co2_per_kwh: Annotated[
        tuple[HourlyFactor, ...], Field(alias="gramsCO2PerKWh", max_length=24)
    ] = ()
    """Grams of CO2 equivalent per kilowatt-hour, by hour of the day; one entry for a constant."""

    pue: Annotated[Amount, Field(ge=1, le=3)] = Decimal(1)
    """Power usage effectiveness of the building: its energy by that of its computers. It multiplies
    costs and emissions; the energy of GPUs is reported as measured."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """Where the figures come from, as reports quote it."""

    date: date
    """The day of the figures."""


class Toleration(Wire):
    """Toleration for a taint of the pool's nodes, as in a pod's `spec.tolerations`."""

    key: LabelKey | None = None
    """Taint key to match; omit it with `operator: Exists` to match every taint."""

    operator: Literal["Equal", "Exists"] = "Equal"
    """`Equal` compares the value; `Exists` matches any value."""

    value: LabelValue | None = None
    """Taint value to match with `operator: Equal`."""

    effect: TaintEffect | None = None
    """Taint effect to match; omitted, all effects match."""

    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Seconds that a pod tolerates a `NoExecute` taint, at most a day; omitted, it tolerates the
    taint forever."""

    model_config = rules_config(
        rule(
            "self.operator != 'Exists' || !has(self.value)",
            "spec.tolerations[].value has no effect with operator Exists, which matches any "
            "value: remove it",
            ".value",
        ),
        rule(
            "has(self.key) || self.operator == 'Exists'",
            "spec.tolerations[] needs a key, or operator Exists to match every taint",
            ".operator",
        ),
        rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "spec.tolerations[].tolerationSeconds needs effect NoExecute, which evicts pods",
            ".tolerationSeconds",
        ),
    )

    @property
    def manifest(self) -> dict[str, Any]:
        """Return the toleration as it is written in a pod."""
        return self.model_dump(by_alias=True, exclude_none=True)


class NodeTaint(Wire):
    """Taint that a node has for as long as it exists."""

    key: Annotated[LabelKey, Field(min_length=1)]
    """Key of the taint."""

    value: LabelValue = ""
    """Value of the taint."""

    effect: TaintEffect
    """Effect of the taint."""


class NodeTemplate(Wire):
    """Nodes that an autoscaler of nodes adds to the pool for pods that wait."""

    product: Annotated[LabelValue, Field(min_length=1)]
    """GPU product of a node, as GPU feature discovery names it in the label
    `nvidia.com/gpu.product`."""

    gpus: Annotated[int, Field(ge=1, le=16)]
    """GPUs of a node."""

    mig_layout: Annotated[
        dict[Profile, Annotated[int, Field(ge=1, le=8)]], Field(max_length=8, default_factory=dict)
    ]
    """Slices by profile into which every GPU of a new node is partitioned without Tessera; empty,
    its GPUs are whole, or as `spec.mig.layout` partitions them."""

    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16, default_factory=dict)]
    """Labels that the autoscaler gives a new node, beside those of `spec.nodeSelector`. Pods select
    nodes by `spec.nodeSelector` alone."""

    taints: Annotated[tuple[NodeTaint, ...], Field(max_length=16)] = ()
    """Taints that a node keeps; engine pods tolerate them. Taints that are removed once a node has
    started do not belong here."""

    max_nodes: Annotated[int, Field(ge=1, le=1000)]
    """Nodes that the pool may have, existing ones included; at least 1. Without
    `spec.nodeTemplate`, the pool offers its existing nodes alone."""

    expected_start: Annotated[Duration, between(timedelta(seconds=10), timedelta(hours=1))] = (
        text_default("5m")
    )
    """Time from a pod that waits until a new node offers its GPUs, from `10s` to `1h`."""


class AcceleratorPoolSpec(Wire):
    """Nodes of the pool, and what they cost."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=16)]
    """Labels that select the nodes of the pool. A node of another GPU product than most is not
    used."""

    namespaces: Annotated[tuple[DnsLabel, ...], Field(max_length=256)] | None = None
    """Namespaces whose services and batches may use the pool; omitted, all of them."""

    tier: Tier = "OnDemand"
    """How the nodes are bought. Services of class `Interactive` never run on `Spot`."""

    prices: Annotated[tuple[Price, ...], Field(min_length=1, max_length=64)]
    """Prices by first day; the latest one that has started applies."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that engine pods tolerate, in addition to `nvidia.com/gpu` and the taints of spot
    nodes. A change restarts the engines of the pool one by one."""

    pre_pull: bool = False
    """Pre-pull engine images on every node of the pool, by DaemonSets in a namespace of their own:
    those of services with a granted replica there, otherwise that of the default engine version.
    Nothing of the images runs."""

    runtime_class_name: DnsSubdomain | None = None
    """RuntimeClass of engine pods on these nodes, for example `nvidia` where that is not the
    default."""

    scheduler_name: DnsSubdomain | None = None
    """Scheduler of engine pods on these nodes; omitted, the default scheduler."""

    mig: Mig | None = None
    """How the GPUs are partitioned into MIG slices; omitted, GPUs and slices are used as they
    exist."""

    energy: EnergyFactors | None = None
    """What a kilowatt-hour costs and emits; omitted, energy is reported in kWh alone."""

    node_template: NodeTemplate | None = None
    """Nodes that do not exist yet and that an autoscaler of nodes, such as Karpenter, adds for
    pods that wait: the pool offers them up to `maxNodes`. Omitted, only existing nodes are
    offered."""

    model_config = rules_config(
        rule(
            "self.prices.all(p, p.currency == self.prices[0].currency)",
            "spec.prices must have the same currency: convert them, or create a pool for each",
            ".prices",
        ),
        rule(
            "self.prices.all(p, self.prices.exists_one(q, q.from == p.from))",
            "spec.prices has two prices with the same first day: keep one of them",
            ".prices",
        ),
        rule(
            "!has(self.nodeTemplate) || !has(self.nodeTemplate.labels) || "
            "self.nodeTemplate.labels.all(k, !(k in self.nodeSelector) || "
            "self.nodeSelector[k] == self.nodeTemplate.labels[k])",
            "spec.nodeTemplate.labels has a label of spec.nodeSelector with another value: the "
            "pool would not select its new nodes",
            ".nodeTemplate",
        ),
        *(
            rule(
                f"!has(self.nodeTemplate) || ((!('{label}' in self.nodeSelector) || "
                f"self.nodeSelector['{label}'] == {value}) && (!has(self.nodeTemplate.labels) || "
                f"!('{label}' in self.nodeTemplate.labels) || "
                f"self.nodeTemplate.labels['{label}'] == {value}))",
                f"spec.nodeTemplate.{field} is not the label {label} of spec.nodeSelector or "
                "spec.nodeTemplate.labels: correct one of them",
                ".nodeTemplate",
            )
            for field, label, value in (
                ("product", PRODUCT_LABEL, "self.nodeTemplate.product"),
                ("gpus", COUNT_LABEL, "string(self.nodeTemplate.gpus)"),
            )
        ),
        rule(
            "!has(self.nodeTemplate) || !has(self.nodeTemplate.migLayout) || !has(self.mig) || "
            "!has(self.mig.layout) || size(self.nodeTemplate.migLayout) == 0 || "
            "size(self.mig.layout) == 0 || self.nodeTemplate.migLayout == self.mig.layout",
            "spec.nodeTemplate.migLayout is not spec.mig.layout, which every GPU of the pool gets: "
            "omit one of them",
            ".nodeTemplate",
        ),
    )


class SliceCount(Wire):
    """Number of slices of one MIG profile."""

    profile: str
    """MIG profile, for example `1g.10gb`."""

    count: int
    """Slices that the nodes offer."""


class NodeStart(Wire):
    """A node that came for a pod that waited."""

    node: str
    """Name of the node."""

    created_at: datetime
    """When the node was created."""

    seconds: int
    """Time from the creation of the pod until it was bound to the node."""


class ProvisioningStatus(Wire):
    """Nodes that an autoscaler started for pods that waited, and those that did not come."""

    expected_start: Annotated[Duration, Field(default=timedelta())]
    """Time that is given to a start: the slowest of `recentStarts`, at least
    `spec.nodeTemplate.expectedStart`."""

    recent_starts: Annotated[tuple[NodeStart, ...], Field(max_length=MAX_STARTS)] = ()
    """The latest nodes that came, the oldest first."""

    failures: int = 0
    """Starts in a row that took longer than `expectedStart`."""

    failed_at: datetime | None = None
    """When the last of these was given up."""

    nodes: int = 0
    """Nodes with devices since then; one more ends the backoff of the pool."""

    resting_until: datetime | None = None
    """Until then the pool offers its existing nodes alone: 10 minutes after the first failure,
    twice as long after each further one, at most 4 hours."""

    reason: str | None = None
    """Why the last start failed; a reason of the condition NodesProvisioned."""

    message: Annotated[StatusText | None, Field(max_length=MAX_WORDS)] = None
    """What the autoscaler or the cloud said of it."""

    placeholder_since: datetime | None = None
    """Since when a placeholder pod asks for the GPUs of a node, where an autoscaler does not know
    the slices that it will have; omitted without one."""

    guarded_node: str | None = None
    """Node that came for the placeholder: it has the annotation `karpenter.sh/do-not-disrupt` until
    a pod uses it, at most until `guardedUntil`."""

    guarded_until: datetime | None = None
    """Twice `expectedStart` after the node came."""


class NodePreemption(Wire):
    """A spot node that was taken from the pods on it."""

    node: str
    """Name of the node."""

    created_at: datetime
    """When the node was created."""

    at: datetime
    """When its taint said that it terminates."""


class SpotStatus(Wire):
    """How often nodes of a spot pool are taken from the pods on them."""

    preemptions_per_node_hour: Amount
    """Preemptions per hour that a node of the pool existed, over the last 24 hours at most.
    Replicas there are compared by their price with what preemptions waste of it."""

    measured_at: datetime
    """When that was measured: with each preemption, and every hour."""

    recent: Annotated[tuple[NodePreemption, ...], Field(max_length=MAX_PREEMPTIONS)]
    """The preemptions of the last 24 hours, the latest 16 at most, the oldest first."""


class AcceleratorPoolStatus(Wire):
    """Observed state of the pool; written by the operator only."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Conditions Accepted, Discovered and LayoutReady; with `spec.nodeTemplate` NodesProvisioned
    too."""

    product: str | None = None
    """GPU product as named by GPU Feature Discovery."""

    nodes: int = 0
    """Nodes that match `spec.nodeSelector`, without those set aside."""

    ready_nodes: int = 0
    """Nodes of these that are Ready and schedulable."""

    gpus: int = 0
    """Whole GPUs that the nodes offer, without GPUs that are partitioned into slices."""

    slices: Annotated[tuple[SliceCount, ...], Field(max_length=32)] = ()
    """MIG slices that the nodes offer, by profile."""

    allocatable: str = ""
    """GPUs and slices that the nodes offer in one line, for `kubectl get`."""

    per_gpu_hour: Annotated[Amount | None, Field(alias="perGPUHour")] = None
    """Price of one whole GPU per hour that applies now."""

    currency: str | None = None
    """Currency of `perGPUHour`."""

    mig: MigStatus | None = None
    """Layout plans and their progress; set only with `spec.mig`."""

    provisioning: ProvisioningStatus | None = None
    """Starts of nodes; set only with `spec.nodeTemplate`."""

    spot: SpotStatus | None = None
    """Preemptions of the last 24 hours; set only for tier `Spot`, and if there were any."""


class AcceleratorPool(Wire):
    """Nodes with the same GPU product, bought in the same way."""

    spec: AcceleratorPoolSpec
    """Nodes of the pool, and what they cost."""

    status: AcceleratorPoolStatus | None = None
    """Observed state of the pool; written by the operator only."""

    model_config = rules_config(
        name_rule(
            "^.{1,63}$",
            "metadata.name is also the value of a label: use at most 63 characters",
        )
    )
