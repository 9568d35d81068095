"""`AcceleratorPool`: GPU nodes of one product that are bought in one way."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import (
    Amount,
    Conditions,
    DnsSubdomain,
    LabelKey,
    LabelValue,
    Wire,
    rule,
    with_rules,
)
from tessera.api.mig import Mig, MigStatus

Tier = Literal["Reserved", "OnDemand", "Spot"]


class Price(Wire):
    """The price of one whole GPU from a day on."""

    from_: Annotated[date, Field(alias="from")]
    """First day (UTC) on which the price holds."""

    per_gpu_hour: Annotated[Amount, Field(alias="perGPUHour")]
    """Price of one whole GPU for an hour, its share of the node included."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """ISO 4217 code."""

    basis: Literal["List", "Reserved", "Negotiated", "Amortized", "Spot"] = "List"
    """Where the price comes from."""


class Toleration(Wire):
    """A taint of the pool's nodes that pods endure there, as in a pod's specification."""

    key: LabelKey | None = None
    """Key of the taint; without it, and with `operator: Exists`, every taint."""

    operator: Literal["Equal", "Exists"] = "Equal"
    """`Equal` compares the value, `Exists` takes any."""

    value: LabelValue | None = None
    """Value of the taint, for `Equal`."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; without it every effect."""

    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a `NoExecute` taint is endured; without it for ever."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "self.operator != 'Exists' || !has(self.value)",
                "spec.tolerations[]: operator Exists takes any value, so 0 values may be given",
                ".value",
            ),
            rule(
                "has(self.key) || self.operator == 'Exists'",
                "spec.tolerations[]: 1 key is needed, or operator Exists for every taint",
                ".operator",
            ),
            rule(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "spec.tolerations[].tolerationSeconds needs the 1 effect that ends pods, NoExecute",
                ".tolerationSeconds",
            ),
        )
    )

    @property
    def manifest(self) -> dict[str, Any]:
        """As it stands in a pod."""
        return self.model_dump(by_alias=True, exclude_none=True)


class AcceleratorPoolSpec(Wire):
    """Which nodes, and what they cost."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=16)]
    """Labels that all nodes of the pool carry; all nodes hold the same GPU product."""

    tier: Tier = "OnDemand"
    """How the nodes are bought. Interactive services never run on `Spot`."""

    prices: Annotated[tuple[Price, ...], Field(min_length=1, max_length=64)]
    """Dated prices; the last one whose day has come is used."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints of the nodes that engines endure, besides `nvidia.com/gpu` and those of spot nodes.
    A change restarts the engines of the pool, one after the other."""

    pre_pull: bool = False
    """A DaemonSet in the operator's namespace keeps the images of engines on every node of the
    pool: those of the services placed there, else that of the default version."""

    runtime_class_name: DnsSubdomain | None = None
    """RuntimeClass of engines on these nodes, such as `nvidia` where that is not the default."""

    scheduler_name: DnsSubdomain | None = None
    """Scheduler of engines on these nodes, where it is not the default one."""

    mig: Mig | None = None
    """How the GPUs are cut into MIG slices; without it they are taken as they are."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "self.prices.all(p, p.currency == self.prices[0].currency)",
                "spec.prices must all have 1 currency; convert them, or make one pool a currency",
                ".prices",
            ),
            rule(
                "self.prices.all(p, self.prices.exists_one(q, q.from == p.from))",
                "spec.prices has 2 prices from the same day; keep one of them",
                ".prices",
            ),
        )
    )


class SliceCount(Wire):
    """How many slices of one MIG profile."""

    profile: str
    """The MIG profile."""

    count: int
    """Slices that the nodes offer."""


class AcceleratorPoolStatus(Wire):
    """What was found; written by the operator alone."""

    observed_generation: int = 0
    """The generation of the spec that this status speaks about."""

    conditions: Conditions = ()
    """Accepted, Discovered and LayoutReady."""

    product: str | None = None
    """The GPU product, as GPU feature discovery names it."""

    nodes: int = 0
    """Nodes that carry the labels."""

    ready_nodes: int = 0
    """Of these, nodes that are Ready and take pods."""

    gpus: int = 0
    """Whole GPUs that the nodes offer, those cut into slices not counted."""

    slices: Annotated[tuple[SliceCount, ...], Field(max_length=32)] = ()
    """MIG slices that the nodes offer."""

    allocatable: str = ""
    """The same in one line, for `kubectl get`."""

    per_gpu_hour: Annotated[Amount | None, Field(alias="perGPUHour")] = None
    """The price that holds now."""

    currency: str | None = None
    """Its currency."""

    mig: MigStatus | None = None
    """Layouts that are planned, and how far they are; only with `spec.mig`."""


class AcceleratorPool(Wire):
    """GPU nodes of one product that are bought in one way."""

    spec: AcceleratorPoolSpec
    """Which nodes, and what they cost."""

    status: AcceleratorPoolStatus | None = None
    """What was found; written by the operator alone."""
