"""The PriceLists of the cluster."""

from dataclasses import dataclass, field

from tessera.api.price_list import PriceListSpec, PriceListStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPriceList:
    """A PriceList with its parsed spec, or None if that is invalid."""

    name: str
    spec: PriceListSpec | None
    problem: str | None = None
    status: PriceListStatus = field(default_factory=PriceListStatus)
