"""`AcceleratorPool`: GPU nodes of one product that are bought in one way."""

from datetime import date
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import Amount, Conditions, LabelKey, LabelValue, Wire, rule, with_rules

Tier = Literal["reserved", "onDemand", "spot"]


class Price(Wire):
    """The price of one whole GPU from a day on."""

    from_: Annotated[date, Field(alias="from")]
    """First day (UTC) on which the price holds."""

    per_gpu_hour: Annotated[Amount, Field(alias="perGPUHour")]
    """Price of one whole GPU for an hour, its share of the node included."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """ISO 4217 code."""

    basis: Literal["list", "reserved", "negotiated", "amortised", "spot"] = "list"
    """Where the price comes from."""


class AcceleratorPoolSpec(Wire):
    """Which nodes, and what they cost."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=16)]
    """Labels that all nodes of the pool carry; all nodes hold the same GPU product."""

    tier: Tier = "onDemand"
    """How the nodes are bought. Interactive services never run on `spot`."""

    prices: Annotated[tuple[Price, ...], Field(min_length=1, max_length=64)]
    """Dated prices; the last one whose day has come is used."""

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
    """Accepted and Discovered."""

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

    offer: str = ""
    """The same in one line, for `kubectl get`."""

    per_gpu_hour: Annotated[Amount | None, Field(alias="perGPUHour")] = None
    """The price that holds now."""

    currency: str | None = None
    """Its currency."""


class AcceleratorPool(Wire):
    """GPU nodes of one product that are bought in one way."""

    spec: AcceleratorPoolSpec
    """Which nodes, and what they cost."""

    status: AcceleratorPoolStatus | None = None
    """What was found; written by the operator alone."""
