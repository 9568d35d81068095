"""Who sends a request: asked before its body is held, after it, and before each attempt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from tessera.domain.gateway.directory import Directory, Identity
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.routes import Route

# As W3C has it; anything else begins a new trace.
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

# Fields of a UsageRecord by their names: each station adds its own.
RecordFields: TypeAlias = dict[str, Any]


class Identifier(Protocol):
    """Says who sends a request."""

    async def identify(
        self, headers: Mapping[bytes, bytes], directory: Directory, address: str
    ) -> Identity:
        """Return the sender, who has this address.

        Raises RequestError with status 401 or 503.
        """
        ...


@dataclass(slots=True, kw_only=True)
class Identified:
    """A request whose sender is known; no byte of its body is held before."""

    route: Route
    query: bytes
    headers: Mapping[bytes, bytes]
    request_id: str
    client_address: str
    tags: str
    sheddable: bool
    """The client says so; its key may as well."""
    identity: Identity
    """The last answer."""
    holding: Holding
    started_ns: int
    """Monotonic."""
    started_at_ns: int
    """Unix time."""

    @property
    def trace_parent(self) -> bytes:
        """Return the span of which the request is a child; empty without any."""
        given = self.headers.get(b"traceparent", b"")
        return given if _TRACE_PARENT.fullmatch(given) else b""

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        identity = self.identity
        return {
            "request_id": self.request_id,
            "started_at_ns": self.started_at_ns,
            "tenant": identity.tenant,
            "team": identity.team,
            "user": identity.user,
            "key": identity.key,
            "route": self.route.path,
            "tags": self.tags,
            "trace_parent": self.trace_parent.decode(),
            "client_address": self.client_address,
        }


class Senders:
    """Knows who sends a request, by the last directory."""

    def __init__(self, identifier: Identifier) -> None:
        self._identifier = identifier
        self.directory = Directory()

    async def identify(self, headers: Mapping[bytes, bytes], address: str) -> Identity:
        """Return who sends a request with these headers from this address.

        Raises RequestError with status 401 or 503.
        """
        return await self._identifier.identify(headers, self.directory, address)

    def weight_of(self, identity: Identity) -> float:
        """Return the weight of the sender's tenant where tenants share."""
        tenant = self.directory.tenants.get(identity.tenant)
        return tenant.weight if tenant else 1.0
