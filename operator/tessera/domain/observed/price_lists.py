"""The PriceLists of the cluster."""

from dataclasses import dataclass, field

from tessera.api.price_list import PriceListSpec, PriceListStatus
from tessera.domain.observed.object import Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPriceList(Observed):
    """A PriceList."""

    spec: PriceListSpec | None
    status: PriceListStatus = field(default_factory=PriceListStatus)
