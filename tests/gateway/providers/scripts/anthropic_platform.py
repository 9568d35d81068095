"""Anthropic.

https://platform.claude.com/docs/en/api/messages, https://platform.claude.com/docs/en/api/streaming
https://platform.claude.com/docs/en/about-claude/pricing (Sonnet 4.6: 3, 3.75, 6, 0.30, 15; a search
is a cent)
https://platform.claude.com/docs/en/api/errors (all counts of `message_delta` are cumulative)
https://platform.claude.com/docs/en/build-with-claude/extended-thinking (`max_tokens` above
`budget_tokens`), https://github.com/openai/openai-agents-python/issues/1704 (a turn of tools begins
with its thinking)
https://github.com/anthropics/claude-code/issues/4207 (no credit is a 400)
https://portkey.ai/error-library/input-length-error-10153 (context)
"""

from typing import Any

from tests.gateway.providers.messages import SIGNATURE, blocks_of, message_reply
from tests.gateway.providers.scripted import (
    Json,
    Prices,
    Refusal,
    Reply,
    Script,
    Tokens,
    prompt_tokens,
    step_of,
    turns_of,
    unknown,
)

_INVALID = "invalid_request_error"
_BLOCKS = {
    "text": "type text cache_control citations",
    "image": "type source cache_control",
    "tool_use": "type id name input cache_control",
    "tool_result": "type tool_use_id content is_error cache_control",
    "thinking": "type thinking signature",
    "redacted_thinking": "type data",
}
_TOP = "model messages system max_tokens metadata stop_sequences stream temperature top_k top_p "
_TOP += "tools tool_choice thinking output_config service_tier container context_management "
_TOP += "inference_geo"


def refusal_of(status: int, kind: str, message: str, **headers: str) -> Refusal:
    error = {"type": kind, "message": message}
    return Refusal(status, {"type": "error", "error": error, "request_id": "req_011"}, headers)


def _invalid(message: str) -> Refusal:
    return refusal_of(400, _INVALID, message)


def breakpoints(value: Any) -> list[Json]:
    """Return the breakpoints of a cache in a body, in order."""
    if isinstance(value, dict) and "cache_control" in value:
        return [value["cache_control"]]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for part in parts for each in breakpoints(part)]


def unknown_part(body: Json, *, top: str, kinds: dict[str, str], tool: str) -> str | None:
    """Return the place of a field that the reference does not have."""
    for name in unknown(body, top):
        return f"{name}: Extra inputs are not permitted"
    for number, each in enumerate(body.get("tools", ())):
        for name in unknown(each, tool):
            return f"tools.{number}.{name}: Extra inputs are not permitted"
    for place, message in enumerate(body["messages"]):
        for name in unknown(message, "role content"):
            return f"messages.{place}.{name}: Extra inputs are not permitted"
        if isinstance(message["content"], str):
            continue
        for number, block in enumerate(message["content"]):
            where = f"messages.{place}.content.{number}"
            if block["type"] not in kinds:
                return f"{where}: Input tag '{block['type']}' found using 'type' does not match"
            for name in unknown(block, kinds[block["type"]]):
                return f"{where}.{block['type']}.{name}: Extra inputs are not permitted"
    return None


def _check(body: Json) -> Refusal | None:
    thinking = body.get("thinking", {})
    budget = thinking.get("budget_tokens", 0)
    if thinking.get("type") == "enabled" and not 1024 <= budget < body["max_tokens"]:
        return _invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if "tool_choice" in body and not body.get("tools"):
        return _invalid("tool_choice: may only be specified while providing `tools`")
    if len(breakpoints(body)) > 4:
        return _invalid("A maximum of 4 blocks with cache_control may be provided.")
    spoken = [
        (place, message["content"])
        for place, message in enumerate(body["messages"])
        if message["role"] == "assistant"
    ]
    for place, content in spoken:
        for number, block in enumerate(content):
            if block["type"] == "thinking" and block.get("signature") != SIGNATURE:
                where = f"messages.{place}.content.{number}"
                return _invalid(f"{where}: Invalid `signature` in `thinking` block")
    # That of the last turn alone is looked for, if it called a tool.
    for place, content in spoken[-1:] if thinking.get("type") == "enabled" else ():
        kinds = [block["type"] for block in content]
        if "tool_use" in kinds and kinds[0] not in ("thinking", "redacted_thinking"):
            return _invalid(
                f"messages.{place}.content.0.type: Expected `thinking` or `redacted_thinking`, but "
                f"found `{kinds[0]}`."
            )
    fault = unknown_part(
        body,
        top=_TOP,
        kinds=_BLOCKS,
        tool="type name description input_schema cache_control strict max_uses allowed_domains "
        "blocked_domains user_location eager_input_streaming input_examples",
    )
    return _invalid(fault) if fault else None


def _reply(body: Json, model: str) -> Reply:
    step = step_of(body)
    thinks = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    prompt, marks = prompt_tokens(body), breakpoints(body)
    long_lived = any(mark.get("ttl") == "1h" for mark in marks)
    cached = prompt // 2 if marks and turns_of(body) else 0
    written = prompt // 4 if marks else 0
    searches = sum(tool.get("type", "").startswith("web_search") for tool in body.get("tools", ()))
    tokens = Tokens(
        prompt=prompt,
        cached=cached,
        written=0 if long_lived else written,
        long_written=written if long_lived else 0,
        output=25 + len(step.text) + (len(step.thought) if thinks else 0),
        searches=searches,
    )
    usage: Json = {
        "input_tokens": prompt - cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": tokens.written,
            "ephemeral_1h_input_tokens": tokens.long_written,
        },
        "output_tokens": tokens.output,
        "service_tier": "standard",
    }
    if searches:
        usage["server_tool_use"] = {"web_search_requests": searches, "web_fetch_requests": 0}
    blocks = blocks_of(step, f"toolu_01{len(body['messages'])}", thinks=thinks)
    return message_reply(blocks, model, tokens, usage, is_last=not step.tool)


SCRIPT = Script(
    name="anthropic",
    dialect="anthropic",
    protocol="AnthropicMessages",
    model="claude-sonnet-4-6",
    prices=Prices(
        input="3", cached="0.30", output="15", written="3.75", long_written="6", search="0.01"
    ),
    spec={"maxContextTokens": 1_000_000},
    check=_check,
    reply=_reply,
    options={"thinking": {"type": "enabled", "budget_tokens": 2048}},
    errors={
        "NoCredit": _invalid(
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
            "Billing to upgrade or purchase credits."
        ),
        "BadKey": refusal_of(401, "authentication_error", "invalid x-api-key"),
        "RateLimited": refusal_of(
            429,
            "rate_limit_error",
            "This request would exceed your organization's rate limit of 50 requests per minute.",
            retry_after="32",
        ),
        "ContextTooLong": _invalid("prompt is too long: 1100000 tokens > 1000000 maximum"),
        "Overloaded": refusal_of(529, "overloaded_error", "Overloaded"),
        "Filtered": _invalid("Output blocked by content filtering policy"),
        "ModelGone": refusal_of(404, "not_found_error", "model: claude-sonnet-4-6"),
    },
)
