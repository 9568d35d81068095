"""Mistral.

https://docs.mistral.ai/api/ (fields; others are a 422)
https://docs.mistral.ai/inference/conversations/reasoning (thoughts are parts of the content)
https://docs.mistral.ai/inference/conversations/advanced/prompt-caching.md (a tenth)
https://docs.mistral.ai/resources/release-note/2024-01-16-token-usage-in-streaming-requests (counts
are in the last chunk, unasked)
https://github.com/avante-corp/avante.nvim/issues/2347 (`stream_options.include_usage` is a 422)
https://github.com/editor-code-assistant/eca/issues/231 (`max_completion_tokens` is a 422)
https://github.com/charmbracelet/crush/issues/1590 (`reasoning_content` is a 422)
https://github.com/Gage-Technologies/mistral-go/pull/2 (`name` is a 422)
https://github.com/jackmpcollins/magentic/pull/279 (calls have names of nine letters)
https://github.com/cline/cline/issues/9085 (rate limit)
https://getlago.com/docs/guide/ai-agents/agent-sdk/mistral (hits are part of the prompt)
"""

import re
from dataclasses import replace

from tests.gateway.providers.chats import Chats, counts, in_the_last_chunk, unknown_field
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import Json, Prices, Refusal, Script, Tokens

_CALL_ID = re.compile("[a-zA-Z0-9]{9}")
_OWN = "max_tokens random_seed n presence_penalty frequency_penalty parallel_tool_calls prediction "
_OWN += "prompt_mode reasoning_effort safe_prompt metadata prompt_cache_key guardrails"


def _error(status: int, message: object, kind: str, code: str | None) -> Refusal:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": code}
    return Refusal(status, body)


def _extra(*place: object) -> Refusal:
    detail = {"type": "extra_forbidden", "loc": ["body", *place]}
    detail["msg"] = "Extra inputs are not permitted"
    return _error(422, {"detail": [detail]}, "invalid_request_error", None)


def _refuse(name: str, place: str) -> Refusal:
    return _extra(*filter(None, place.split(".")), name)


def _check(body: Json) -> Refusal | None:
    if "include_usage" in body.get("stream_options", {}):
        return _extra("stream_options", "include_usage")
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            if not _CALL_ID.fullmatch(call["id"]):
                text = (
                    f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9."
                )
                return _error(400, text, "invalid_request_message_order", "3280")
    return unknown_field(body, _refuse, top=_OWN, message="prefix", call="id type function index")


def _counts(body: Json, step: Step, *, thinks: bool) -> Tokens:
    # Thoughts are counted, and told apart nowhere.
    return replace(counts(body, step, thinks=thinks), reasoning=None)


def _usage(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def _thought(step: Step) -> Json:
    thinking = [{"type": "text", "text": step.thought}]
    parts: list[Json] = [{"type": "thinking", "thinking": thinking, "closed": True}]
    return {"content": parts}


_SHARED: Json = {
    "dialect": "mistral",
    "prices": Prices(input="1.50", cached="0.15", output="7.50"),
    "check": _check,
    "errors": {
        "NoCredit": _error(402, "Payment required", "payment_required", "1910"),
        "BadKey": Refusal(401, {"detail": "Unauthorized"}),
        "RateLimited": _error(429, "Rate limit exceeded", "rate_limited", "1300"),
        "ContextTooLong": _error(
            400,
            "Prompt contains 300000 tokens and 0 draft tokens, too large for model with 262144 "
            "maximum context length",
            "invalid_request_prompt",
            "3051",
        ),
        "Overloaded": _error(503, "Service unavailable.", "service_unavailable", "3700"),
        "ModelGone": _error(400, "Invalid model: mistral-medium-3-5", "invalid_model", "1500"),
    },
}

SCRIPT = Script(
    name="mistral",
    model="devstral-2512",
    spec={"maxContextTokens": 262_144},
    reply=Chats(
        thinks=False, counts=_counts, usage=_usage, ending=in_the_last_chunk, call_id="D681Pev{:02}"
    ).reply,
    options={"max_tokens": 4000},
    **_SHARED,
)
# The same with a model that reasons.
REASONING = Script(
    name="mistral-reasoning",
    model="mistral-medium-3-5",
    spec={"maxContextTokens": 262_144},
    reply=Chats(
        counts=_counts,
        usage=_usage,
        thought=_thought,
        ending=in_the_last_chunk,
        call_id="D681Pev{:02}",
    ).reply,
    options={"max_tokens": 4000, "reasoning_effort": "high"},
    **_SHARED,
)
