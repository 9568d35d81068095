"""Reads the body of a request within bounds, and what it says."""

import asyncio
from dataclasses import dataclass

from tessera.api.text import counted
from tessera.domain.gateway.directory import VARIANT_HEADER
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.bodies.parsing import RequestFields, parse_with_unlisted
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.responses import Message, Receive
from tessera.gateway.identify.senders import Identified, RecordFields
from tessera.gateway.paths import PathItem
from tessera.gateway.receive.routed import RoutedTo
from tessera.gateway.refusals import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyBounds:
    """Bounds of one request."""

    max_bytes: int = 32 * 2**20
    seconds: float = 60
    heartbeat_seconds: float = 10
    """Between two comments in a stream that waits for its first token."""


_VARIANT = VARIANT_HEADER.encode()
# Stands for those of a body that was dropped.
_NO_FIELDS = RequestFields(model="")


@dataclass(slots=True, kw_only=True)
class Received:
    """A request whose body came, and was read."""

    identified: Identified
    model: str
    """The name that the client asked for."""
    streams: bool
    fields: RequestFields
    """What the body says; they keep it."""
    unlisted: str | None
    """A field that does not pass to engines which several tenants may use; None without any."""
    body: bytes
    """As it came, or as its target gets it."""
    routed: RoutedTo | None = None
    """The target of its route; None of a request for a service."""
    skipped_targets: str = ""
    """Of a request that no target answers: `name=reason` pairs joined by commas."""
    origin: "Received | None" = None
    """What came for the route, of which this is what a target gets."""

    @property
    def priority(self) -> RequestPriority:
        """Return what it lets others of its model do, as its client says; gates yield."""
        if self.identified.sheddable or self.identified.identity.sheddable:
            return RequestPriority.SHEDDABLE
        yields = self.fields.yields or self.identified.identity.evaluates is not None
        return RequestPriority.BATCH if yields else RequestPriority.DEFAULT

    @property
    def variant(self) -> str | None:
        """Return the variant whose replicas a gate asks; None of any."""
        if self.identified.identity.evaluates is None:
            return None
        return self.identified.headers.get(_VARIANT, b"").decode("latin-1") or None

    def drop_body(self) -> None:
        """Keep nothing of the body, which no other engine will get."""
        self.fields, self.body = _NO_FIELDS, b""
        if self.origin is not None:
            self.origin.drop_body()

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        fields = self.identified.record_fields()
        fields["model"], fields["stream"] = self.model, self.streams
        if self.routed is not None:
            fields |= self.routed.record_fields()
        elif self.skipped_targets:
            fields["skipped_targets"] = self.skipped_targets
        return fields


class Receiver:
    """Receives the requests of one process."""

    def __init__(self, bounds: BodyBounds, turns: Turns, reading_turns: Turns) -> None:
        """Take the turns of large bodies, and those of their parts while they come."""
        self.bounds = bounds
        self._turns, self._reading_turns = turns, reading_turns

    async def receive(
        self, identified: Identified, receive: Receive, *, is_whole: bool = False
    ) -> bytes:
        """Return the whole body, whose bytes are held; nobody waits for one that `is_whole`.

        Raises RequestError where it is too large, too slow, or encoded.
        """
        headers, holding = identified.headers, identified.holding
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestError(RequestReason.UNSUPPORTED_ENCODING)
        limit = self.bounds.max_bytes
        if int(headers.get(b"content-length", b"0")) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        try:
            if is_whole:
                await self._receive_parts(parts, receive, holding)
            else:
                async with asyncio.timeout(self.bounds.seconds):
                    await self._receive_parts(parts, receive, holding)
            if holding.size > limit:
                raise _too_large(limit)
            return await self._turns.take(holding.size, lambda: b"".join(parts))
        except TimeoutError:
            raise RequestError(RequestReason.BODY_TIMEOUT, f"{self.bounds.seconds:g}") from None
        finally:
            # The traceback of an error would keep them.
            parts.clear()

    async def _receive_parts(self, parts: list[bytes], receive: Receive, holding: Holding) -> None:
        """Add parts of a body to others, until all have come or they are too large."""
        more = True
        while more and holding.size <= self.bounds.max_bytes:
            message = await _next_part(receive, holding)
            parts.append(message["body"])
            more = message["more_body"]
            # The next part comes in the same turn of the loop as those of many others.
            await self._reading_turns.take(holding.size, lambda: None)

    async def read(self, identified: Identified, body: bytes) -> Received:
        """Return what the body says.

        Raises RequestError with status 400.
        """
        fields, unlisted = await read_fields(identified.path_item, body, self._turns)
        return Received(
            identified=identified,
            model=fields.model,
            streams=fields.streams,
            fields=fields,
            unlisted=unlisted,
            body=body,
        )


async def read_fields(
    item: PathItem, body: bytes, turns: Turns
) -> tuple[RequestFields, str | None]:
    """Return what a body says, and the name of a field in it that is not listed.

    Raises RequestError with status 400.
    """
    return await turns.take(len(body), lambda: parse_with_unlisted(item.decoder, item.listed, body))


async def _next_part(receive: Receive, holding: Holding) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestError(RequestReason.CLIENT_GONE)
    if not holding.take(len(message["body"])):
        raise holding.error()
    return message


def _too_large(limit: int) -> RequestError:
    return RequestError(RequestReason.BODY_TOO_LARGE, counted(limit, "byte"))
