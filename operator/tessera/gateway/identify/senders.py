"""Who sends a request: asked before its body is held, after it, and before each attempt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.paths import PathItem
from tessera.gateway.refusals import RequestError, invalid_request

# As W3C has it; anything else begins a new trace.
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# No credential is longer; the tokens of some issuers list hundreds of groups.
_MAX_CREDENTIAL_BYTES = 16 * 1024
_CREDENTIAL_HEADERS = (b"authorization", b"x-api-key")
# Between two values of one header: no value has it.
_NEXT = b"\0"
# Before the keys are read once: a known key is not refused as unknown.
_NO_DIRECTORY = Directory()

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

    path_item: PathItem
    query: bytes
    headers: Mapping[bytes, bytes]
    request_id: str
    client_address: str
    tags: str
    sheddable: bool
    """The client says so; its key may as well."""
    identity: Identity
    """The last answer."""
    directory_number: int
    """The directory of the first answer."""
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
            "path": self.path_item.path,
            "tags": self.tags,
            "trace_parent": self.trace_parent.decode(),
            "client_address": self.client_address,
        }


class Senders:
    """Knows who sends a request, by the last directory."""

    def __init__(self, identifier: Identifier) -> None:
        self._identifier = identifier
        self._directory = _NO_DIRECTORY
        self.directory_number = 0
        """Directories so far: a request keeps the number, and not a directory that is gone."""

    @property
    def directory(self) -> Directory:
        """Return the last directory."""
        return self._directory

    @directory.setter
    def directory(self, directory: Directory) -> None:
        self._directory = directory
        self.directory_number += 1

    @property
    def are_known(self) -> bool:
        """Whether the keys were read once."""
        return self._directory is not _NO_DIRECTORY

    async def identify(self, headers: Mapping[bytes, bytes], address: str) -> Identity:
        """Return who sends a request with these headers from this address.

        Raises RequestError with status 401 or 503.
        """
        if not self.are_known:
            raise RequestError(RequestReason.TOKENS_NOT_VERIFIED)
        return await self._identifier.identify(headers, self._directory, address)

    async def identify_again(self, identified: Identified) -> Identity:
        """Return who sends a request by now, without a look at its key where none changed.

        Raises RequestError with status 401 or 503.
        """
        identity = identified.identity
        if identity.is_lasting and identified.directory_number == self.directory_number:
            return identity
        return await self.identify(identified.headers, identified.client_address)

    def weight_of(self, identity: Identity) -> float:
        """Return the weight of the sender's tenant where tenants share."""
        tenant = self.directory.tenants.get(identity.tenant)
        return tenant.weight if tenant else 1.0

    def allows_downgrade(self, identity: Identity) -> bool:
        """Return whether another target of a route than the last may answer the sender."""
        tenant = self.directory.tenants.get(identity.tenant)
        return identity.allow_downgrade and (tenant is None or tenant.allow_downgrade)

    def takes_cheaper_targets(self, identity: Identity) -> bool:
        """Return whether of a route the cheapest target alone may answer the sender."""
        tenant = self.directory.tenants.get(identity.tenant)
        return tenant is not None and tenant.cheaper_targets


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers of a request; of those with one name the last, and all credentials."""
    values = dict(headers)
    if len(values) == len(headers):
        return values
    values.clear()
    for name, value in headers:
        # A filter in front may have checked another one than the last.
        is_second = name in values and name in _CREDENTIAL_HEADERS
        values[name] = values[name] + _NEXT + value if is_second else value
    return values


def is_true(headers: Mapping[bytes, bytes], name: str, *, default: bool) -> bool:
    """Return what a header says that is `true` or `false`.

    Raises RequestError with status 400 where it is neither.
    """
    given = headers.get(name.encode())
    if given not in (None, b"true", b"false"):
        raise invalid_request(f"{name}: expected `true` or `false`.")
    return default if given is None else given == b"true"


def credential_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the key or token of `Authorization`, or of `x-api-key` as clients of messages.

    Raises RequestError where a header comes twice, or the two headers have keys that differ.
    """
    authorization, key = (headers.get(name, b"") for name in _CREDENTIAL_HEADERS)
    scheme, _, credential = authorization.partition(b" ")
    credential, key = credential.strip(), key.strip()
    if scheme.lower() != b"bearer":
        credential = key
    if _NEXT in authorization + key or (key and key != credential):
        raise RequestError(RequestReason.AMBIGUOUS_KEY)
    return credential if 0 < len(credential) <= _MAX_CREDENTIAL_BYTES else None
