"""A generation as HTTP: a stream of events, or one answer at its end."""

from aiohttp import web

from tessera.domain.engine_requests import Reason
from tessera.engine_sim.asks import Ask
from tessera.engine_sim.forms import DONE, Dialect, Ending, Usage, dumps
from tessera.engine_sim.runner import Stream


async def streamed(
    request: web.Request, ask: Ask, stream: Stream, form: Dialect, *, details: bool
) -> web.StreamResponse:
    """Events as tokens come; all tokens of one step go out in one write.

    The status is sent before the first token, so that whatever happens later is a 200.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    told = 0
    while not stream.over:
        await stream.more()
        events = _events(ask, stream, form, told)
        told = stream.tokens
        if events:
            await response.write(events)
    usage = _usage(ask, stream, told, details=details)
    last = form.usage_chunk(usage) if ask.usage and stream.reason is not None else b""
    await response.write(last + DONE)
    await response.write_eof()
    return response


async def whole(ask: Ask, stream: Stream, form: Dialect, *, details: bool) -> web.Response:
    """The answer in one piece."""
    while not stream.over:
        await stream.more()
    usage = _usage(ask, stream, stream.tokens, details=details)
    body = form.whole(ask.visible(0, stream.tokens), usage, _ending(ask, stream))
    return web.json_response(body, dumps=dumps)


def _events(ask: Ask, stream: Stream, form: Dialect, told: int) -> bytes:
    """The chunks of all tokens that were not yet told, and the end if it has come."""
    events = []
    if told == 0 and (stream.tokens or stream.reason):
        events.append(form.opening(_running(ask, 0)))
    for token in range(told, stream.tokens):
        last = stream.over and token == stream.tokens - 1
        ending = _ending(ask, stream) if last else None
        events.append(form.chunk(ask.visible(token, token + 1), _running(ask, token + 1), ending))
    if stream.over and stream.reason is not None and told == stream.tokens:
        events.append(form.chunk("", _running(ask, told), _ending(ask, stream)))
    return b"".join(events)


def _ending(ask: Ask, stream: Stream) -> Ending:
    reason = stream.reason or Reason.ABORT
    stop = ask.stop.string if ask.stop is not None and reason is Reason.STOP else None
    return Ending(reason=reason, stop=stop)


def _usage(ask: Ask, stream: Stream, tokens: int, *, details: bool) -> Usage:
    """At the end."""
    return Usage(
        prompt_tokens=ask.prompt_tokens,
        completion_tokens=tokens,
        cached_tokens=stream.cached_tokens if details else None,
    )


def _running(ask: Ask, tokens: int) -> Usage | None:
    if not ask.running_usage:
        return None
    return Usage(prompt_tokens=ask.prompt_tokens, completion_tokens=tokens)
