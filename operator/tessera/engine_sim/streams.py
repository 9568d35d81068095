"""A generation as HTTP: a stream of events, or one answer at its end."""

from collections.abc import Sequence

from aiohttp import web

from tessera.domain.engine_requests import Reason
from tessera.engine_sim.asks import Ask, Part
from tessera.engine_sim.errors import engine_dead
from tessera.engine_sim.forms import DONE, Dialect, Piece, dumps, event
from tessera.engine_sim.runner import Stream
from tessera.engine_sim.usage import Ending, Timing, Usage


class Going:
    """The answers of one request on their way."""

    def __init__(self, ask: Ask, streams: Sequence[Stream], *, details: bool, timed: bool) -> None:
        self.ask = ask
        self.streams = streams
        self._details = details
        self._timed = timed

    @property
    def over(self) -> bool:
        return all(stream.over for stream in self.streams)

    async def more(self) -> None:
        """Wait for news of any of them."""
        await self.streams[0].news.wait()
        self.streams[0].news.clear()

    def pieces(self) -> list[Piece]:
        """The whole answers."""
        return [
            Piece(part=part, start=0, end=stream.tokens, ending=ending(part, stream))
            for part, stream in zip(self.ask.parts, self.streams, strict=True)
        ]

    def usage(self) -> Usage:
        """At the end."""
        cached = sum(stream.cached_tokens for stream in self.streams[:: self.ask.answers])
        return Usage(
            prompt_tokens=self.ask.prompt_tokens,
            completion_tokens=sum(stream.tokens for stream in self.streams),
            cached_tokens=cached if self._details else None,
        )

    def running(self, part: Part, tokens: int) -> Usage | None:
        """Of one answer so far, where it is to be told."""
        if not self.ask.running_usage:
            return None
        return Usage(prompt_tokens=part.prompt.tokens, completion_tokens=tokens)

    def timing(self) -> Timing | None:
        """Of a single answer, where it is to be told."""
        return self.streams[0].timing if self._timed and len(self.streams) == 1 else None


async def streamed(request: web.Request, going: Going, form: Dialect) -> web.StreamResponse:
    """Events as tokens come; all tokens of one step go out in one write.

    The status is sent before the first token, so that whatever happens later is a 200.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    told = [0] * len(going.streams)
    while not all(stream.over and stream.told for stream in going.streams):
        await going.more()
        events = [
            _events(going, form, part, stream, told)
            for part, stream in zip(going.ask.parts, going.streams, strict=True)
        ]
        if any(events):
            await response.write(b"".join(events))
    await response.write(_closing(going, form))
    await response.write_eof()
    return response


async def whole(going: Going, form: Dialect) -> web.Response:
    """The answer in one piece."""
    while not going.over:
        await going.more()
    if any(stream.broken for stream in going.streams):
        raise engine_dead()
    body = form.whole(going.pieces(), going.usage(), going.timing())
    return web.json_response(body, dumps=dumps)


def _events(going: Going, form: Dialect, part: Part, stream: Stream, counts: list[int]) -> bytes:
    """The chunks of all tokens that were not yet told, and the end if it has come."""
    if stream.told:
        return b""
    told, events = counts[part.index], []
    if told == 0 and (stream.tokens or stream.reason):
        events.append(form.opening(part, going.running(part, 0)))
    for token in range(told, stream.tokens):
        last = stream.over and not stream.broken and token == stream.tokens - 1
        piece = Piece(
            part=part, start=token, end=token + 1, ending=ending(part, stream) if last else None
        )
        events.append(form.chunk(piece, going.running(part, token + 1)))
    if stream.over and stream.reason is not None and told == stream.tokens:
        piece = Piece(part=part, start=told, end=told, ending=ending(part, stream))
        events.append(form.chunk(piece, going.running(part, told)))
    counts[part.index] = stream.tokens
    stream.told = stream.over
    return b"".join(events)


def _closing(going: Going, form: Dialect) -> bytes:
    """A stream of which nobody heard a word ends without one."""
    if any(stream.broken for stream in going.streams):
        return event(engine_dead().body) + DONE
    if all(stream.reason is None for stream in going.streams):
        return DONE
    return form.closing(going.pieces(), going.usage(), going.timing())


def ending(part: Part, stream: Stream) -> Ending:
    """How an answer ended."""
    reason = stream.reason or Reason.ABORT
    stop = part.stop.string if part.stop is not None and reason is Reason.STOP else None
    return Ending(reason=reason, stop=stop)
