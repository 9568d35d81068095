"""What comes to each service, and how long it will probably be."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.charge.prices import charge_of
from tessera.domain.gateway.client_lengths import ClientId, ClientLengths
from tessera.domain.gateway.directory import Identity, OfferedModel
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.money import Money
from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens
from tessera.gateway.resolve.chooser import Chosen


class ArrivalCount(NamedTuple):
    """Requests of one service that came, and what is expected of those that can be sized."""

    requests: int = 0
    tokens: ArrivedTokens = NO_TOKENS

    def plus(self, other: "ArrivalCount") -> "ArrivalCount":
        """Return the sum."""
        return ArrivalCount(self.requests + other.requests, self.tokens.plus(other.tokens))


class ArrivalCounter:
    """Counts the requests that come with the lengths that their clients' earlier ones had."""

    def __init__(self, is_late_alone: Callable[[OfferedModel, RequestShape, int], bool]) -> None:
        """Take what says whether a prompt of so many tokens is late by itself."""
        self._is_late_alone = is_late_alone
        self._lengths = ClientLengths()
        self._counts: dict[Ref, ArrivalCount] = {}

    def add(self, identity: Identity, model: OfferedModel, shape: RequestShape) -> None:
        """Count a request that comes."""
        tokens = self._lengths.expected(
            model.uid, _client(identity), shape.input_tokens, shape.max_output_tokens
        )
        if model.generates and tokens.requests and self._is_late_alone(model, shape, tokens.prompt):
            tokens = tokens._replace(late_alone=1)
        self._count(model, tokens, requests=1)

    def route(self, model: OfferedModel) -> None:
        """Count a request that comes, and that another target of its route may answer."""
        self._count(model, ArrivedTokens(routed=1))

    def wait(self, model: OfferedModel) -> None:
        """Count a request that waits for a place, and that no other target may answer."""
        self._count(model, ArrivedTokens(waited=1))

    def overflow(self, chosen: Chosen) -> None:
        """Count what a target gets since another one had no place, at the cost of the target.

        That is of the tokens that are expected of its client. What has no known cost is not
        counted, nor what has one in another currency.
        """
        routed, shape, target = chosen.received.routed, chosen.shape, chosen.model
        source = routed.overflowed if routed is not None else None
        if source is None or source.uid == target.uid:
            return
        client = _client(chosen.received.identified.identity)
        tokens = self._lengths.expected(
            source.uid, client, shape.input_tokens, shape.max_output_tokens
        )
        own, cost = source.token_cost, _cost(target, tokens)
        if tokens.requests and own and cost and own.currency == cost.currency:
            self._count(source, ArrivedTokens(overflowed=1, overflow_nanos=cost.nanos))

    def _count(self, model: OfferedModel, tokens: ArrivedTokens, *, requests: int = 0) -> None:
        before = self._counts.get(model.service, ArrivalCount())
        self._counts[model.service] = before.plus(ArrivalCount(requests, tokens))

    def take(self) -> Mapping[Ref, ArrivalCount]:
        """Return the requests that came since the last time, also those that were refused then."""
        counts, self._counts = self._counts, {}
        return counts

    def learn(
        self,
        identity: Identity,
        model: OfferedModel,
        shape: RequestShape,
        *,
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        """Take the tokens that an engine counted of a whole request."""
        self._lengths.learn(
            model.uid,
            _client(identity),
            estimate=shape.input_tokens,
            prompt=input_tokens,
            answer=output_tokens,
        )

    def forget(self, model: OfferedModel) -> None:
        """Forget a service that is gone."""
        self._lengths.forget(model.uid)


def _cost(target: OfferedModel, tokens: ArrivedTokens) -> Money | None:
    """Return what a request costs where it goes: by the provider's prices, or by the status."""
    if target.outside is not None:
        price = target.outside.cost
        nanos = charge_of(
            price, input_tokens=tokens.prompt, cached=0, output=tokens.answer, reasoning=0
        )
        return Money(nanos, price.currency)
    cost = target.token_cost
    return cost and Money(cost.nanos * tokens.answer // 10**6, cost.currency)


def _client(identity: Identity) -> ClientId:
    user = identity.user if identity.key is None else None
    return ClientId(identity.tenant, identity.key, user)
