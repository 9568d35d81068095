"""What a route costs for each token or request, compared with its last target for all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# Of the tokens, that go to the small model: those that the sources of such savings name.
SHARES = (0.5, 0.6, 0.85, 0.9, 0.95)
_MILLION, _NANO = 1e6, 1e9


class Blend(NamedTuple):
    """What a route of two models costs if a share of the tokens goes to the small one."""

    share: float
    price: float
    """Of the same tokens as those of both models."""
    saved: float | None
    """Share of the large model's price; below 0 it costs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteUse:
    """What requests for a route used in some time, of those with a price in one currency."""

    requests: Mapping[str, float] = field(default_factory=dict)
    """By target, in any currency and without a price too."""
    fallbacks: float = 0.0
    """Those that another target did not answer."""
    currency: str | None = None
    """None where no answer had a price beside one of the last target."""
    tokens: Mapping[str, float] = field(default_factory=dict)
    """Those of answers, by target."""
    charges: Mapping[str, float] = field(default_factory=dict)
    """Nano-units of answers, by target."""
    at_last: float = 0.0
    """Nano-units that the last target would be charged for the tokens of all answers."""
    failed: float = 0.0
    """Nano-units of calls that gave no answer, whether paid or not: what routing costs."""

    @property
    def cost(self) -> float:
        """Return the nano-units of answers, and of calls without one."""
        return sum(self.charges.values()) + self.failed

    @property
    def per_million(self) -> float | None:
        """Return the blended price of a million tokens of answers."""
        return _per_million(self.cost, sum(self.tokens.values()))

    @property
    def last_per_million(self) -> float | None:
        """Return what a million of the same tokens costs at the last target."""
        return _per_million(self.at_last, sum(self.tokens.values()))

    @property
    def saved(self) -> float | None:
        """Return the saved share of what the last target would be charged."""
        return saved_share(self.cost, self.at_last)

    @property
    def cost_of_saving(self) -> float | None:
        """Return what routing costs as a share of what it saves; None where it saves nothing."""
        saving = self.at_last - sum(self.charges.values())
        return self.failed / saving if saving > 0 else None

    def price_of(self, target: str) -> float | None:
        """Return what a million tokens cost at a target."""
        return _per_million(self.charges.get(target, 0.0), self.tokens.get(target, 0.0))

    def share_of(self, target: str) -> float | None:
        """Return the share of the requests that a target answered, or was the last to refuse."""
        return self._share(self.requests.get(target, 0.0))

    @property
    def fallback_share(self) -> float | None:
        """Return the share of the requests that another target did not answer."""
        return self._share(self.fallbacks)

    def _share(self, requests: float) -> float | None:
        total = sum(self.requests.values())
        return requests / total if total else None


def _per_million(nanos: float, tokens: float) -> float | None:
    return nanos / _NANO / tokens * _MILLION if tokens else None


def router_blend(small_share: float, small: float, large: float, router: float = 0.0) -> float:
    """Return the mean price where a share goes to the small model; the router costs for all."""
    return small_share * small + (1 - small_share) * large + router


def blends(small: float, large: float) -> tuple[Blend, ...]:
    """Return what the shares of the sources make of two prices."""
    prices = {share: router_blend(share, small, large) for share in SHARES}
    return tuple(Blend(share, price, saved_share(price, large)) for share, price in prices.items())


def saved_share(cost: float, last_target_cost: float) -> float | None:
    """Return what is saved of the cost at the last target, below 0 if it costs more.

    None where that costs nothing.
    """
    return 1 - cost / last_target_cost if last_target_cost else None


def less_text(saved: float | None) -> str:
    """Return a saved share in words: `25.0% less`."""
    return "-" if saved is None else f"{abs(saved):.1%} {'less' if saved >= 0 else 'more'}"
