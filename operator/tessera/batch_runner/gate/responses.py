"""Reads what engines respond to prompts, within bounds: streams, rankings and vectors."""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import mul
from typing import Any, Literal, NamedTuple

import aiohttp

from tessera.api.text import one_line
from tessera.batch_runner.gate.scorers import MAX_ANSWER_BYTES, ModelAnswer, ToolCall
from tessera.batch_runner.input.rows import clamp_tokens, reply_object
from tessera.batch_runner.retry import RequestOutcome

PromptTask = Literal["chat", "rerank", "embed"]
# Engines list at most so many candidates for a token.
TOP_LOGPROBS = 20
# An event of a stream, a whole stream with its names around each token, and a response of vectors.
_MAX_EVENT_BYTES = 2**20
_MAX_RESPONSE_BYTES = 64 * 2**20
_MAX_TOOL_CALLS = 16
_MAX_PROBLEM_LENGTH = 300


class PromptOutcome(NamedTuple):
    """What came of a request."""

    outcome: RequestOutcome
    answer: ModelAnswer = ModelAnswer(is_refused=True)
    problem: str = ""
    pause_seconds: float = 0.0
    """Time that the engine asks to wait."""
    is_over_limit: bool = False
    """Who asks is refused, and others may be answered."""


@dataclass(slots=True)
class _AnswerReader:
    """Collects an answer from the events of a stream, within bounds."""

    texts: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    logprobs: dict[str, float] | None = None
    finish_reason: str = ""
    refusal: bool = False
    tokens: int = 0
    times: list[float] = field(default_factory=list)
    error: str = ""
    _bytes: int = 0

    @property
    def is_full(self) -> bool:
        return self._bytes > MAX_ANSWER_BYTES

    def read(self, fields: Mapping[str, Any], at: float) -> None:
        """Take one event, or a whole response."""
        if (error := fields.get("error")) is not None:
            self.error = problem_text(json.dumps(error))
        usage = fields.get("usage")
        if isinstance(usage, dict):
            self.tokens = clamp_tokens(usage.get("completion_tokens")) or self.tokens
        choices = fields.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        message = choice.get("delta", choice.get("message"))
        if isinstance(message, dict):
            self._read_message(message, at)
        if self.logprobs is None:
            self.logprobs = _first_logprobs(choice.get("logprobs"))
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason[:32]

    def _read_message(self, message: Mapping[str, Any], at: float) -> None:
        content, has_token = message.get("content"), False
        self.refusal = self.refusal or bool(message.get("refusal"))
        if isinstance(content, str) and content:
            has_token = True
            self._bytes += len(content)
            self.texts.append(content)
        # Reasoning is no answer, though its tokens are paid for and take time.
        for name in ("reasoning", "reasoning_content"):
            has_token = has_token or bool(message.get(name))
        calls = message.get("tool_calls")
        for position, call in enumerate(calls if isinstance(calls, list) else ()):
            function = call.get("function") if isinstance(call, dict) else None
            index = call.get("index", position) if isinstance(call, dict) else None
            if not isinstance(function, dict) or type(index) is not int:
                continue
            has_token = True
            if index not in self.calls and len(self.calls) >= _MAX_TOOL_CALLS:
                continue
            parts = self.calls.setdefault(index, ["", ""])
            for place, name in enumerate(("name", "arguments")):
                if isinstance(text := function.get(name), str):
                    self._bytes += len(text)
                    parts[place] += text
        if has_token:
            self.times.append(at)

    def answer(self, begin: float) -> ModelAnswer:
        """Return what was read of an answer, asked for at `begin`."""
        return ModelAnswer(
            # A lone half of a pair is no character, and no file of UTF-8 can have it.
            text="".join(self.texts)[:MAX_ANSWER_BYTES].encode(errors="replace").decode(),
            tool_calls=tuple(
                ToolCall(name=name, arguments=arguments)
                for _, (name, arguments) in sorted(self.calls.items())
            ),
            logprobs=self.logprobs,
            finish_reason="length" if self.is_full else self.finish_reason,
            is_refused=self.refusal or self.finish_reason == "content_filter",
            # Each event has a token or more, whatever the engine says of its usage.
            output_tokens=max(self.tokens, len(self.times)),
            ttft_seconds=self.times[0] - begin if self.times else None,
            gaps=tuple(after - at for at, after in zip(self.times, self.times[1:], strict=False)),
        )


def _first_logprobs(logprobs: object) -> dict[str, float] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    listed = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(listed, list) or not listed:
        return None
    return {
        each["token"]: float(each["logprob"])
        for each in listed[: 2 * TOP_LOGPROBS]
        if isinstance(each, dict)
        and isinstance(each.get("token"), str)
        and type(each.get("logprob")) in (int, float)
        and math.isfinite(each["logprob"])
    }


def _rank_results(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the documents of a reranker's response, the best first."""
    results = fields.get("results")
    scores = {
        each["index"]: each["relevance_score"]
        for each in (results if isinstance(results, list) else ())
        if isinstance(each, dict)
        and type(each.get("index")) is int
        and type(each.get("relevance_score")) in (int, float)
        and math.isfinite(each["relevance_score"])
    }
    return tuple(sorted(scores, key=lambda number: (-scores[number], number)))


def _rank_embeddings(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the documents by the cosine of each with the query, which comes first."""
    data = fields.get("data")
    vectors = {
        each["index"]: each["embedding"]
        for each in (data if isinstance(data, list) else ())
        if isinstance(each, dict) and type(each.get("index")) is int and _is_vector(each)
    }
    query = vectors.pop(0, None)
    if query is None:
        return ()
    scores = {
        number - 1: sum(map(mul, query, vector)) / math.hypot(*vector)
        for number, vector in vectors.items()
        if len(vector) == len(query) and any(vector)
    }
    return tuple(sorted(scores, key=lambda number: (-scores[number], number)))


def _is_vector(each: Mapping[str, Any]) -> bool:
    vector = each.get("embedding")
    return isinstance(vector, list) and all(
        type(value) in (int, float) and abs(value) < 1e30 for value in vector
    )


def problem_text(text: str) -> str:
    """Return words of an engine for a message."""
    return one_line(text, _MAX_PROBLEM_LENGTH)


async def read_response(
    response: aiohttp.ClientResponse, task: PromptTask, begin: float
) -> PromptOutcome:
    """Return the answer to a request that was sent at `begin`, in seconds of a monotonic clock."""
    reader, is_stream = _AnswerReader(), response.content_type == "text/event-stream"
    buffer, size = bytearray(), 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        buffer += chunk
        if is_stream:
            _read_events(reader, buffer, time.monotonic())
        if reader.is_full:
            break
        if size > _MAX_RESPONSE_BYTES or (is_stream and len(buffer) > _MAX_EVENT_BYTES):
            return PromptOutcome(RequestOutcome.REFUSED, problem="the response is too large")
    if is_stream:
        return _outcome(reader, begin)
    fields = reply_object(bytes(buffer))
    if fields is None:
        problem = "the response is no JSON object"
        return PromptOutcome(RequestOutcome.FAILED, problem=problem)
    if task == "chat":
        # Who gets an answer in one piece waits for its first token as long as for all.
        reader.read(fields, time.monotonic())
        return _outcome(reader, begin)
    seconds = time.monotonic() - begin
    rank = _rank_results if task == "rerank" else _rank_embeddings
    ranking = await asyncio.to_thread(rank, fields)
    answer = ModelAnswer(ranking=ranking, ttft_seconds=seconds, finish_reason="stop")
    return PromptOutcome(RequestOutcome.ANSWERED, answer)


def _outcome(reader: _AnswerReader, begin: float) -> PromptOutcome:
    if reader.error:
        return PromptOutcome(RequestOutcome.FAILED, problem=reader.error)
    # On SIGTERM an engine aborts its requests, which looks like a short answer.
    if reader.finish_reason in ("", "abort") and not reader.is_full:
        return PromptOutcome(RequestOutcome.LOST, problem="the answer was cut off")
    return PromptOutcome(RequestOutcome.ANSWERED, reader.answer(begin))


def _read_events(reader: _AnswerReader, buffer: bytearray, at: float) -> None:
    """Take the whole lines of a stream from its buffer."""
    *lines, rest = buffer.split(b"\n")
    buffer[:] = rest
    for line in lines:
        name, _, data = line.partition(b":")
        if name == b"data" and (fields := reply_object(bytes(data))) is not None:
            reader.read(fields, at)
