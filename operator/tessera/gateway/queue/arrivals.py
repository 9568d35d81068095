"""What comes to each service, and how long it will probably be."""

from collections.abc import Mapping
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.gateway.client_lengths import ClientId, ClientLengths
from tessera.domain.gateway.directory import Identity, OfferedModel
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens


class ArrivalCount(NamedTuple):
    """Requests of one service that came, and what is expected of those that can be sized."""

    requests: int = 0
    tokens: ArrivedTokens = NO_TOKENS

    def plus(self, other: "ArrivalCount") -> "ArrivalCount":
        """Return the sum."""
        return ArrivalCount(self.requests + other.requests, self.tokens.plus(other.tokens))


class ArrivalCounter:
    """Counts the requests that come with the lengths that their clients' earlier ones had."""

    def __init__(self) -> None:
        self._lengths = ClientLengths()
        self._counts: dict[Ref, ArrivalCount] = {}

    def add(self, identity: Identity, model: OfferedModel, shape: RequestShape) -> None:
        """Count a request that comes."""
        tokens = self._lengths.expected(
            model.uid, _client(identity), shape.input_tokens, shape.max_output_tokens
        )
        before = self._counts.get(model.service, ArrivalCount())
        self._counts[model.service] = before.plus(ArrivalCount(1, tokens))

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


def _client(identity: Identity) -> ClientId:
    user = identity.user if identity.key is None else None
    return ClientId(identity.tenant, identity.key, user)
