"""How long requests will be, by the client that sends each: known before any of them ends.

A client is a key, or those who send without one, of a tenant in a service. What one shows counts
for its own requests alone; one that showed little yet is taken for a mean client of the service.
All services share a bounded table, in which the tenant with most clients gives way.
"""

from collections import OrderedDict
from typing import NamedTuple

from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens

MAX_CLIENTS = 16_384
# Requests of a service before its means are known; a client's own mean counts like its first ones.
MIN_REQUESTS = 20
# A mean follows its newest requests: each weighs at least this share of it.
_LEAST_WEIGHT = 1 / 256
# The estimate has 3 bytes for each token, and a token has a byte at least.
_MOST_OF_ESTIMATE = 3.0
# Part of the clients of who has most that leaves at once, so that tenants are compared rarely.
_FREED_SHARE = 1 / 64


class ClientId(NamedTuple):
    """Who sends requests to a service."""

    tenant: str
    key: str | None = None
    user: str | None = None
    """Without a key; None for all others of the tenant."""


class _Means:
    """Mean sizes of the requests of a client, or of a service."""

    __slots__ = ("answer", "estimate", "prompt", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.estimate = self.prompt = self.answer = 0.0

    def add(self, estimate: int, prompt: int, answer: int) -> None:
        self.requests += 1
        weight = max(_LEAST_WEIGHT, 1 / self.requests)
        self.estimate += (estimate - self.estimate) * weight
        self.prompt += (prompt - self.prompt) * weight
        self.answer += (answer - self.answer) * weight


class ClientLengths:
    """Learns the lengths of each client's requests from those that ended."""

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        self._max_clients = max_clients
        self._services: dict[str, _Means] = {}
        self._tenants: dict[str, OrderedDict[tuple[str, ClientId], _Means]] = {}
        """By tenant, and of each by service and client, the one used last at the end."""
        self.clients = 0

    def expected(self, service: str, client: ClientId, estimate: int, most: int) -> ArrivedTokens:
        """Return what a request will probably have; nothing while the service is not known.

        `estimate` is that of its prompt by its bytes, and `most` what it asks for at most.
        """
        of_service = self._services.get(service)
        if of_service is None or of_service.requests < MIN_REQUESTS:
            return NO_TOKENS
        clients = self._tenants.get(client.tenant)
        own = (clients.get((service, client)) if clients else None) or _Means()
        share = own.requests / (own.requests + MIN_REQUESTS)
        answer = of_service.answer + (own.answer - of_service.answer) * share
        ratio = _ratio(of_service, own, share)
        prompt = max(1, round(estimate * ratio))
        return ArrivedTokens(1, prompt, min(round(answer), most), prompt * prompt)

    def learn(
        self, service: str, client: ClientId, *, estimate: int, prompt: int, answer: int
    ) -> None:
        """Take a request that ended, with the tokens that its engine counted."""
        self._services.setdefault(service, _Means()).add(estimate, prompt, answer)
        clients = self._tenants.setdefault(client.tenant, OrderedDict())
        key = service, client
        if key not in clients:
            clients[key] = _Means()
            self.clients += 1
        clients.move_to_end(key)
        clients[key].add(estimate, prompt, answer)
        if self.clients > self._max_clients:
            self._make_room()

    def forget(self, service: str) -> None:
        """Forget a service that is gone; what its clients have here leaves with time."""
        self._services.pop(service, None)

    def _make_room(self) -> None:
        tenant, clients = max(self._tenants.items(), key=lambda each: len(each[1]))
        for _ in range(max(1, int(len(clients) * _FREED_SHARE))):
            clients.popitem(last=False)
            self.clients -= 1
        if not clients:
            del self._tenants[tenant]


def _ratio(of_service: _Means, own: _Means, share: float) -> float:
    """Return the tokens of prompts for one of their estimates."""
    estimate = of_service.estimate + (own.estimate - of_service.estimate) * share
    prompt = of_service.prompt + (own.prompt - of_service.prompt) * share
    return min(_MOST_OF_ESTIMATE, prompt / estimate)
