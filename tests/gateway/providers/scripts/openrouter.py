"""OpenRouter, with a model of Anthropic behind it.

https://openrouter.ai/docs/use-cases/usage-accounting (`cost`, counts in the last message)
https://openrouter.ai/docs/prompt-caching (`cached_tokens`, `cache_write_tokens`)
https://openrouter.ai/docs/use-cases/reasoning-tokens (`reasoning_details` come back as they were)
https://openrouter.ai/docs/errors (errors have numbers as codes, and come with a status of 200 once
a model works), https://openrouter.ai/docs/api-reference/streaming (comments)
https://github.com/hackclub/ai/issues/128 (no credit)
"""

from dataclasses import replace

from tests.gateway.providers.chats import Chats, counts, unknown_field
from tests.gateway.providers.chats import usage as openai_usage
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import (
    Json,
    Prices,
    Refusal,
    Script,
    Tokens,
    assistant_calls,
)

PRICES = Prices(input="3", cached="0.30", output="15", written="3.75", long_written="6")
_SIGNATURE = "EqQBCkYIARgCKkD"


def _error(
    status: int, message: str, *, as_status: int | None = None, **metadata: object
) -> Refusal:
    error: Json = {"code": status, "message": message}
    if metadata:
        error["metadata"] = metadata
    return Refusal(as_status or status, {"error": error, "user_id": "org_1"})


def _refuse(name: str, place: str) -> Refusal:
    return _error(400, f"Unrecognized key: {place}{name}")


def _check(body: Json) -> Refusal | None:
    # Claude takes a loop of tools without thoughts where it is not asked to think.
    thinks = "reasoning" in body or "reasoning_effort" in body
    for place, message in assistant_calls(body) if thinks else ():
        details = message.get("reasoning_details") or [{}]
        if details[0].get("signature") != _SIGNATURE:
            raw = (
                f"messages.{place}.content.0.type: Expected `thinking` or `redacted_thinking`, but "
                "found `tool_use`."
            )
            return _error(400, "Provider returned error", raw=raw, provider_name="Anthropic")
    return unknown_field(
        body,
        _refuse,
        top="max_tokens max_completion_tokens n presence_penalty frequency_penalty "
        "repetition_penalty top_k top_a min_p seed logprobs top_logprobs logit_bias "
        "parallel_tool_calls reasoning reasoning_effort include_reasoning usage user session_id "
        "metadata provider models plugins transforms route verbosity prediction "
        "structured_outputs cache_control",
        message="name refusal reasoning reasoning_details",
    )


def _counts(body: Json, step: Step, *, thinks: bool) -> Tokens:
    tokens = counts(body, step, thinks=thinks)
    return replace(tokens, written=tokens.prompt // 8)


def _usage(tokens: Tokens) -> Json:
    counted = openai_usage(tokens)
    counted["prompt_tokens_details"]["cache_write_tokens"] = tokens.written
    cost = float(PRICES.bill(tokens))
    return {
        **counted,
        "cost": cost,
        "is_byok": False,
        "cost_details": {"upstream_inference_cost": cost},
    }


def _thought(step: Step) -> Json:
    detail = {
        "type": "reasoning.text",
        "text": step.thought,
        "signature": _SIGNATURE,
        "format": "anthropic-claude-v1",
        "index": 0,
    }
    return {"reasoning": step.thought, "reasoning_details": [detail]}


SCRIPT = Script(
    name="openrouter",
    dialect="openrouter",
    model="anthropic/claude-sonnet-4.6",
    path="/api/v1",
    prices=PRICES,
    spec={"maxContextTokens": 1_000_000},
    check=_check,
    reply=Chats(
        counts=_counts,
        usage=_usage,
        thought=_thought,
        call_id="toolu_bdrk_{}",
        shared={"provider": "Anthropic"},
        begin=b": OPENROUTER PROCESSING\n\n",
    ).reply,
    options={"max_tokens": 4000, "reasoning_effort": "high"},
    errors={
        "NoCredit": _error(
            402, "Insufficient credits. Add more using https://openrouter.ai/settings/credits"
        ),
        "BadKey": _error(401, "User not found."),
        "RateLimited": Refusal(
            429,
            {"error": {"code": 429, "message": "Rate limit exceeded: free-models-per-min. "}},
            {"retry_after": "31"},
        ),
        "ContextTooLong": _error(
            400,
            "This endpoint's maximum context length is 1000000 tokens. However, you requested "
            "about 1100000 tokens. Please reduce the length of either one.",
        ),
        # The model has begun, so the status is that of a success.
        "Overloaded": _error(
            503, "Provider returned error", as_status=200, provider_name="Anthropic",
            raw="Overloaded",
        ),
        "Filtered": _error(
            403,
            "Your input was flagged",
            reasons=["violence"], flagged_input="...", provider_name="Anthropic",
            model_slug="anthropic/claude-sonnet-4.6",
        ),
        "ModelGone": _error(404, "No endpoints found for anthropic/claude-sonnet-4.6."),
    },
)  # fmt: skip
