"""A generation as HTTP: a stream of events, or one body at its end."""

from collections.abc import Sequence

from aiohttp import web

from tessera_lab.engine.requests import FinishReason
from tessera_lab.sim.encoders import (
    DONE,
    ResponseEncoder,
    TokenSpan,
    WholeEncoder,
    dump_json,
    server_sent_event,
)
from tessera_lab.sim.errors import engine_dead
from tessera_lab.sim.generation_spec import GenerationSpec, SampleSpec
from tessera_lab.sim.runner import TokenStream
from tessera_lab.sim.usage import GenerationEnd, Timing, TokenUsage


class ActiveGeneration:
    """The samples of one request in progress."""

    def __init__(
        self, spec: GenerationSpec, streams: Sequence[TokenStream], *, details: bool, timed: bool
    ) -> None:
        self.spec = spec
        self.streams = streams
        self._details = details
        self._timed = timed

    @property
    def ended(self) -> bool:
        return all(stream.ended for stream in self.streams)

    async def wait_for_tokens(self) -> None:
        """Wait until any sample changes."""
        await self.streams[0].changed.wait()
        self.streams[0].changed.clear()

    def spans(self) -> list[TokenSpan]:
        """Return the whole samples."""
        return [
            TokenSpan(sample=sample, start=0, end=stream.tokens, ending=ending(sample, stream))
            for sample, stream in zip(self.spec.samples, self.streams, strict=True)
        ]

    def usage(self) -> TokenUsage:
        """Return the usage at the end."""
        cached = sum(
            stream.cached_tokens for stream in self.streams[:: self.spec.samples_per_prompt]
        )
        return TokenUsage(
            prompt_tokens=self.spec.prompt_tokens,
            completion_tokens=sum(stream.tokens for stream in self.streams),
            cached_tokens=cached if self._details else None,
        )

    def running_usage(self, sample: SampleSpec, tokens: int) -> TokenUsage | None:
        """Return the usage of one sample so far, where the request asks for it."""
        if not self.spec.continuous_usage:
            return None
        return TokenUsage(prompt_tokens=sample.prompt.tokens, completion_tokens=tokens)

    def timing(self) -> Timing | None:
        """Return the timing of a single sample, where the server reports it."""
        return self.streams[0].timing if self._timed and len(self.streams) == 1 else None


async def write_stream(
    request: web.Request, generation: ActiveGeneration, encoder: ResponseEncoder
) -> web.StreamResponse:
    """Write events as tokens come; all tokens of one step go out in one write."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
    # As in vLLM the status goes out before the first token, so that a later failure is still a 200.
    await response.prepare(request)
    sent_counts = [0] * len(generation.streams)
    while not all(stream.ended and stream.end_sent for stream in generation.streams):
        await generation.wait_for_tokens()
        events = [
            _events(generation, encoder, sample, stream, sent_counts)
            for sample, stream in zip(generation.spec.samples, generation.streams, strict=True)
        ]
        if any(events):
            await response.write(b"".join(events))
    await response.write(_closing(generation, encoder))
    await response.write_eof()
    return response


async def whole_response(generation: ActiveGeneration, encoder: WholeEncoder) -> web.Response:
    """Return the response in one piece."""
    while not generation.ended:
        await generation.wait_for_tokens()
    if any(stream.engine_died for stream in generation.streams):
        raise engine_dead()
    body = encoder.whole(generation.spans(), generation.usage(), generation.timing())
    return web.json_response(body, dumps=dump_json)


def _events(
    generation: ActiveGeneration,
    encoder: ResponseEncoder,
    sample: SampleSpec,
    stream: TokenStream,
    sent_counts: list[int],
) -> bytes:
    """Return the chunks of all unsent tokens, and the end if it has come."""
    if stream.end_sent:
        return b""
    sent, events = sent_counts[sample.index], []
    if sent == 0 and (stream.tokens or stream.reason):
        events.append(encoder.opening(sample, generation.running_usage(sample, 0)))
    for token in range(sent, stream.tokens):
        last = stream.ended and not stream.engine_died and token == stream.tokens - 1
        span = TokenSpan(
            sample=sample,
            start=token,
            end=token + 1,
            ending=ending(sample, stream) if last else None,
        )
        events.append(encoder.chunk(span, generation.running_usage(sample, token + 1)))
    if stream.ended and stream.reason is not None and sent == stream.tokens:
        span = TokenSpan(sample=sample, start=sent, end=sent, ending=ending(sample, stream))
        events.append(encoder.chunk(span, generation.running_usage(sample, sent)))
    sent_counts[sample.index] = stream.tokens
    stream.end_sent = stream.ended
    return b"".join(events)


def _closing(generation: ActiveGeneration, encoder: ResponseEncoder) -> bytes:
    """Return the last events; a stream without any token ends with `[DONE]` alone."""
    if any(stream.engine_died for stream in generation.streams):
        return server_sent_event(engine_dead().body) + DONE
    if all(stream.reason is None for stream in generation.streams):
        return DONE
    if not generation.spec.include_usage:
        return DONE
    return encoder.usage(generation.usage(), generation.timing()) + DONE


def ending(sample: SampleSpec, stream: TokenStream) -> GenerationEnd:
    """Return how a sample ended."""
    reason = stream.reason or FinishReason.ABORT
    stop = sample.stop.string if sample.stop is not None and reason is FinishReason.STOP else None
    return GenerationEnd(reason=reason, stop=stop)
