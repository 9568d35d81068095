"""Answers of chats, whole and as chunks, with what differs between providers left to them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import (
    CREATED,
    DONE,
    Json,
    Refusal,
    Reply,
    Tokens,
    event,
    prompt_tokens,
    step_of,
    turns_of,
    unknown,
)

Ending = Callable[[Json, Json, bool], list[Json]]
"""Returns the last chunks of a stream, by its counts, the chunk with its end, and whether counts
were asked for."""
Refuse = Callable[[str, str], Refusal]

TOP = (
    "model messages stream stream_options temperature top_p stop tools tool_choice response_format"
)
MESSAGE = "role content tool_calls tool_call_id"
CALL = "id type function"


def counts(body: Json, step: Step, *, thinks: bool = True) -> Tokens:
    """Return what an answer takes: half of the prompt was cached, once there was another."""
    prompt = prompt_tokens(body)
    thought = 40 + len(step.thought) if thinks else 0
    spoken = 9 + len(step.text) + len(json.dumps(step.arguments))
    return Tokens(
        prompt=prompt,
        cached=prompt // 2 if turns_of(body) else 0,
        output=thought + spoken,
        reasoning=thought,
    )


def usage(tokens: Tokens) -> Json:
    """Return the counts as OpenAI has them: parts of the others in the details."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning or 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def in_a_chunk_of_its_own(counted: Json, last: Json, is_asked: bool) -> list[Json]:
    """Return the last chunks, with counts in one that has no choices, if they were asked for."""
    if not is_asked:
        return [last]
    return [last | {"usage": None}, {**last, "choices": [], "usage": counted}]


def in_the_last_chunk(counted: Json, last: Json, _: bool) -> list[Json]:
    """Return the last chunk, with the counts beside its choice."""
    return [last | {"usage": counted}]


def _no_fields(_: Step) -> Json:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chats:
    """How one provider answers chats."""

    thinks: bool = True
    counts: Callable[..., Tokens] = counts
    usage: Callable[[Tokens], Json] = usage
    thought: Callable[[Step], Json] = _no_fields
    """Fields of a message, or of a delta, with what the model thought."""
    call_fields: Callable[[Step], Json] = _no_fields
    """Fields of a call of a tool beside the usual ones."""
    ending: Ending = in_a_chunk_of_its_own
    call_id: str = "call_{}"
    shared: Json = field(default_factory=dict)
    """Fields of all answers and chunks."""
    begin: bytes = b""
    """What a stream begins with."""

    def reply(self, body: Json, model: str) -> Reply:
        step = step_of(body)
        tokens = self.counts(body, step, thinks=self.thinks)
        counted = self.usage(tokens)
        shared = {"id": "chatcmpl-7", "created": CREATED, "model": model, **self.shared}
        finish = "tool_calls" if step.tool else "stop"
        message: Json = {"role": "assistant", "content": step.text or None}
        message |= self.thought(step) if self.thinks else {}
        if step.tool:
            message["tool_calls"] = [self._call(body, step, json.dumps(step.arguments))]
        choice = {"index": 0, "message": message, "finish_reason": finish}
        whole = {**shared, "object": "chat.completion", "choices": [choice], "usage": counted}
        shared["object"] = "chat.completion.chunk"
        chunks = [
            {**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in self._deltas(body, step)
        ]
        last = {**shared, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        is_asked = (body.get("stream_options") or {}).get("include_usage", False)
        events = [event(chunk) for chunk in [*chunks, *self.ending(counted, last, is_asked)]]
        return Reply(tokens, whole, [self.begin, *events, DONE])

    def _call(self, body: Json, step: Step, arguments: str) -> Json:
        return {
            "id": self.call_id.format(len(body["messages"])),
            "type": "function",
            "function": {"name": step.tool, "arguments": arguments},
            **self.call_fields(step),
        }

    def _deltas(self, body: Json, step: Step) -> Sequence[Json]:
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        for name, value in (self.thought(step) if self.thinks else {}).items():
            # Texts come in pieces, and what is no text as a whole.
            pieces = [value[:5], value[5:]] if isinstance(value, str) else [value]
            deltas += [{name: piece} for piece in pieces]
        deltas += [{"content": f"{word} "} for word in step.text.split()]
        if step.tool:
            arguments = json.dumps(step.arguments)
            deltas.append({"tool_calls": [{"index": 0, **self._call(body, step, "")}]})
            deltas += [
                {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                for piece in (arguments[:7], arguments[7:])
            ]
        return deltas


def unknown_field(
    body: Json, refuse: Refuse, *, top: str, message: str, call: str = CALL
) -> Refusal | None:
    """Refuse a body with a field that the provider's reference does not have.

    `refuse` takes the field and the place where it stands.
    """
    for name in unknown(body, f"{TOP} {top}"):
        return refuse(name, "")
    for place, each in enumerate(body["messages"]):
        for name in unknown(each, f"{MESSAGE} {message}"):
            return refuse(name, f"messages.{place}.{each['role']}.")
        for number, called in enumerate(each.get("tool_calls", ())):
            for name in unknown(called, call):
                return refuse(name, f"messages.{place}.tool_calls.{number}.")
    return None


def choice_without_tools(body: Json) -> str | None:
    """Return the field that says something of tools where none are offered."""
    names = ("tool_choice", "parallel_tool_calls")
    return next((name for name in names if name in body and not body.get("tools")), None)
