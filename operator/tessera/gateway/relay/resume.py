"""Keeps what a stream needs in order to go on at another replica, and joins the two parts."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import msgspec

from tessera.gateway.bodies.continuation import tokenize_bodies
from tessera.gateway.bodies.delivered import Delivered, NotContinuableError
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.engine_connection import (
    ConnectionLostError,
    EngineSession,
    InvalidHttpError,
)
from tessera.gateway.http.event_fields import has_too_many
from tessera.gateway.http.sse import EventRelay, InvalidStreamError, event_data, split_events

RESUMABLE = b"x-tessera-resumable"
# Of one stream: its request, and what its client got. A token takes about 250 bytes in an event,
# so it is enough for 8,000 of them.
MAX_PROTECTED_BYTES = 2 * 2**20
# Of the fields of events that have the answer itself: neither its reasoning nor a call of a tool.
TEXT_NAMES = (b'"content":', b'"text":')
_UNPROTECTED = b": %b: false\n\n" % RESUMABLE
# Bytes are held in steps, and each event takes more than its bytes.
_STEP_BYTES, _EVENT_BYTES = 4096, 48
# Of an event with text at most; most have about 250.
_USUAL_BYTES = 512
# Of events that are read at once, each of which takes as long as so many times its bytes of a body.
_READ_BYTES, _READ_COST = 2**14, 16
# Of an answer, with the ids of 300,000 tokens.
_MAX_TOKENIZED_BYTES = 2 * 2**20
_TOKENIZE_SECONDS = 5.0
_JSON_LINE = b"Content-Type: application/json\r\n"


class Protection:
    """What one running stream needs in order to go on elsewhere, which its request holds.

    It is given up where there is no room for it, and once the stream has more than one text, or an
    event of more values than may be.
    """

    def __init__(self, body: bytes, holding: Holding, head: Mapping[str, msgspec.Raw]) -> None:
        """Take the request that the engine got, whose bytes are held."""
        self.body = body
        self._holding = holding
        self._head = head
        self._delivered: Delivered | None = None
        # What is not read yet of what the client got.
        self._blocks: deque[bytes] = deque()
        self._size = len(body)
        self._unheld = 0
        self._deltas = 0
        self.is_active = True
        self._is_announced = False
        holding.spare_held(len(body))
        holding.on_drop = self._drop

    def add(self, block: bytes, relayed: EventRelay) -> bytes:
        """Keep what the client gets; return it with the word that it is the last, if it is.

        `relayed` counted its events. Of many small ones, one of too many values is noticed when
        they are read.
        """
        if self.is_active:
            deltas, self._deltas = relayed.deltas - self._deltas, relayed.deltas
            self._blocks.append(block)
            self._unheld += len(block) + _EVENT_BYTES
            if self._unheld > _STEP_BYTES:
                self._hold()
            is_large = len(block) > _USUAL_BYTES * deltas
            if relayed.text_name not in TEXT_NAMES or (is_large and has_too_many(block)):
                self.end()
        if self.is_active or self._is_announced:
            return block
        self._is_announced = True
        return _UNPROTECTED + block

    async def delivered(self, turns: Turns) -> Delivered:
        """Read what the client got since it was read last, a part in each turn.

        Raises NotContinuableError.
        """
        if self.is_active:
            self._hold()
        delivered = self._delivered = self._delivered or Delivered(self._head)
        # Those that come meanwhile are not waited for.
        unread = len(self._blocks)
        while self._blocks and unread > 0:
            size = self._size - len(self.body) - delivered.size
            unread -= await turns.take(size * _READ_COST, lambda: self._read(delivered))
        if not self.is_active:
            raise NotContinuableError("the stream is not protected")
        delivered.check()
        return delivered

    def hold(self, size: int) -> bool:
        """Hold what an engine is asked and answers; False where there is no room."""
        return self.is_active and self._holding.take_spare(size)

    def free(self, size: int) -> None:
        """Hold it no more."""
        self._holding.free_spare(size)

    def end(self) -> None:
        """Keep nothing more."""
        if self.is_active:
            self._holding.drop_spare()

    def _read(self, delivered: Delivered) -> int:
        """Read the next blocks, of which little is kept; return how many these are.

        Raises NotContinuableError, after which the stream is not protected any more.
        """
        size, number, before = 0, 0, delivered.size
        try:
            while self._blocks and size < _READ_BYTES:
                block = self._blocks.popleft()
                size += len(block)
                number += 1
                delivered.read(map(event_data, split_events(block)))
        except (InvalidStreamError, NotContinuableError) as error:
            self.end()
            raise NotContinuableError(str(error)) from None
        # A text has fewer bytes than its events.
        less = size + number * _EVENT_BYTES - (delivered.size - before)
        self._size -= less
        self._holding.free_spare(less)
        return number

    def _hold(self) -> None:
        size, self._unheld = self._unheld, 0
        self._size += size
        if self._size > MAX_PROTECTED_BYTES or not self._holding.take_spare(size):
            self.end()

    def _drop(self) -> None:
        self.is_active = False
        self.body = b""
        self._blocks.clear()
        self._unheld = 0
        self._delivered = None


class CountedTokens(NamedTuple):
    """Tokens of a prompt, if they are known, and of what was answered so far."""

    prompt: int | None
    answer: int


class _Tokenized(msgspec.Struct, gc=False):
    count: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    tokens: msgspec.Raw


_tokenized = msgspec.json.Decoder(_Tokenized)


async def count_tokens(
    session: EngineSession,
    address: str,
    headers: bytes,
    protection: Protection,
    delivered: Delivered,
    turns: Turns,
) -> CountedTokens | None:
    """Return how an engine reads an answer that has begun.

    None where it does not say, or there is no room for what it says. Raises NotContinuableError
    where it does not read the same prompt before them, as with a template that changes earlier
    turns.
    """
    # A stream that runs gets more meanwhile.
    events, text_bytes = delivered.events, delivered.text_bytes
    body = protection.body
    bodies = await turns.take(len(body) + text_bytes, lambda: tokenize_bodies(body, delivered))
    if bodies is None:
        return CountedTokens(None, delivered.tokens)
    # Thousands of streams may be lost at once, and engines belong to tenants.
    with _held_meanwhile(protection.hold, protection.free) as hold:
        if not hold(len(bodies.prompt) + len(bodies.continued)):
            return None
        try:
            async with asyncio.timeout(_TOKENIZE_SECONDS):
                prompt = await _tokens(session, address, headers, bodies.prompt, hold)
                whole = await _tokens(session, address, headers, bodies.continued, hold)
        except (OSError, ConnectionLostError, InvalidHttpError, InvalidStreamError):
            return None
    if prompt is None or whole is None:
        return None
    # A token at least stands behind each event. Engines may send several in one, and a text may
    # have fewer tokens than it was generated in; no token has less than a byte.
    counted = min(whole.count - prompt.count, text_bytes)
    tokens = max(counted, events)
    is_same = bytes(whole.tokens).startswith(bytes(prompt.tokens).rstrip()[:-1] + b",")
    # The text of a completion is the same, and may have other tokens at the joint.
    if not is_same and bodies.is_chat:
        raise NotContinuableError("the engine reads another prompt")
    return CountedTokens(prompt.count, tokens)


async def count_prompt(
    session: EngineSession, address: str, body: bytes, holding: Holding
) -> int | None:
    """Return how many tokens an engine says that a prompt has.

    None where it does not say, or there is no room for what it says.
    """
    with _held_meanwhile(holding.take_room, holding.free) as hold:
        if not hold(len(body)):
            return None
        try:
            async with asyncio.timeout(_TOKENIZE_SECONDS):
                answer = await _tokens(session, address, _JSON_LINE, body, hold)
        except (OSError, ConnectionLostError, InvalidHttpError):
            return None
    return None if answer is None else answer.count


@contextmanager
def _held_meanwhile(
    take: Callable[[int], bool], free: Callable[[int], None]
) -> Iterator[Callable[[int], bool]]:
    """Yield what takes room for bytes; what is left of them does not outlive it."""
    held_bytes = 0

    def hold(size: int) -> bool:
        nonlocal held_bytes
        fits = take(size)
        held_bytes += size if fits else 0
        return fits

    try:
        yield hold
    finally:
        free(held_bytes)


async def _tokens(
    session: EngineSession,
    address: str,
    headers: bytes,
    body: bytes,
    hold: Callable[[int], bool],
) -> _Tokenized | None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (
        address.encode(),
        headers,
        len(body),
    )
    connection = await session.connect(address)
    try:
        await connection.send(head, body)
        answer = await connection.read(_MAX_TOKENIZED_BYTES, hold)
        if connection.status != 200 or answer is None:
            return None
        return _tokenized.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    finally:
        session.release(connection, address)
