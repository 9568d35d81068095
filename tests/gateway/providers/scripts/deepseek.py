"""DeepSeek.

https://api-docs.deepseek.com/guides/thinking_mode.md (thinking is on by default; of turns that call
tools `reasoning_content` has to come back, else 400)
https://api-docs.deepseek.com/quick_start/pricing (deepseek-v4-pro, prices of peak hours)
https://api-docs.deepseek.com/quick_start/error_codes
https://github.com/JohnnyZ93/oai-compatible-copilot/issues/202 (the body of that 400)
https://docs.rs/deepseek-sdk/0.7.0 (the object `usage`)
"""

from tests.gateway.providers.chats import Chats, unknown_field
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import (
    Json,
    Prices,
    Refusal,
    Script,
    Tokens,
    assistant_calls,
    error,
)

_INVALID = "invalid_request_error"


def _refuse(name: str, place: str) -> Refusal:
    return Refusal(422, error(f"{place}{name}: unknown field", _INVALID, _INVALID))


def _check(body: Json) -> Refusal | None:
    is_on = body.get("thinking", {}).get("type", "enabled") == "enabled"
    if is_on and any("reasoning_content" not in each for _, each in assistant_calls(body)):
        message = "The `reasoning_content` in the thinking mode must be passed back to the API."
        return Refusal(400, error(message, _INVALID, _INVALID))
    return unknown_field(
        body,
        _refuse,
        top="max_tokens presence_penalty frequency_penalty logprobs top_logprobs thinking "
        "reasoning_effort user_id",
        message="name prefix reasoning_content",
    )


def _usage(tokens: Tokens) -> Json:
    # Hits stand at the top alone, as before the details came.
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_cache_hit_tokens": tokens.cached,
        "prompt_cache_miss_tokens": tokens.prompt - tokens.cached,
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def _thought(step: Step) -> Json:
    return {"reasoning_content": step.thought}


SCRIPT = Script(
    name="deepseek",
    dialect="deepseek",
    model="deepseek-v4-pro",
    path="",
    prices=Prices(input="1.32", cached="0.044", output="3.96"),
    spec={"maxContextTokens": 1_000_000},
    check=_check,
    reply=Chats(
        usage=_usage, thought=_thought, call_id="call_00_{}", begin=b": keep-alive\n\n"
    ).reply,
    options={"max_tokens": 4000, "extra_body": {"thinking": {"type": "enabled"}}},
    errors={
        "NoCredit": Refusal(402, error("Insufficient Balance", "unknown_error", _INVALID)),
        "BadKey": Refusal(
            401, error("Authentication Fails, Your api key is invalid", "authentication_error")
        ),
        "RateLimited": Refusal(429, error("Rate limit reached", "rate_limit_error")),
        "ContextTooLong": Refusal(
            400,
            error(
                "This model's maximum context length is 1000000 tokens. However, you requested "
                "1100000 tokens. Please reduce the length of the messages or completion.",
                _INVALID, _INVALID,
            ),
        ),
        "Overloaded": Refusal(
            503, error("Service is too busy. Please try again later.", "service_unavailable_error")
        ),
        "ModelGone": Refusal(400, error("Model Not Exist", _INVALID, _INVALID)),
    },
)  # fmt: skip
