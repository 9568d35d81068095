"""OpenAI, chats of a model that reasons.

https://platform.openai.com/docs/api-reference/chat/create (fields, chunks, counts)
https://developers.openai.com/docs/guides/error-codes (errors)
https://github.com/openai/openai-python, src/openai/_base_client.py (`retry-after-ms`)
https://developers.openai.com/api/docs/pricing (gpt-5.4: 2.50, 0.25, 15; twice and 1.5 times above
272,000 tokens of a prompt, https://docs.perplexity.ai/docs/gateway/models)
https://github.com/camel-ai/camel/pull/3706 (parallel_tool_calls without tools)
"""

from tests.gateway.providers.chats import Chats, choice_without_tools, unknown_field
from tests.gateway.providers.scripted import Json, Prices, Refusal, Script, error

_INVALID = "invalid_request_error"
_QUOTA = "You exceeded your current quota, please check your plan and billing details."


def _refuse(name: str, place: str) -> Refusal:
    message = f"Unknown parameter: '{place}{name}'."
    return Refusal(400, error(message, _INVALID, "unknown_parameter", f"{place}{name}"))


def _check(body: Json) -> Refusal | None:
    if "max_tokens" in body:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead."
        )
        return Refusal(400, error(message, _INVALID, "unsupported_parameter", "max_tokens"))
    if name := choice_without_tools(body):
        message = f"'{name}' is only allowed when 'tools' are specified."
        return Refusal(400, error(message, _INVALID, None, name))
    return unknown_field(
        body,
        _refuse,
        top="max_completion_tokens n presence_penalty frequency_penalty seed logprobs top_logprobs "
        "logit_bias parallel_tool_calls reasoning_effort verbosity store metadata user "
        "service_tier prompt_cache_key prompt_cache_retention safety_identifier prediction "
        "modalities audio web_search_options functions function_call",
        message="name refusal audio function_call",
    )


SCRIPT = Script(
    name="openai",
    dialect="openai",
    model="gpt-5.4",
    prices=Prices(
        input="2.50", cached="0.25", output="15",
        above=272_000, long_input="5", long_cached="0.50", long_output="22.50",
    ),
    spec={"outputLimitField": "max_completion_tokens", "maxContextTokens": 1_050_000},
    check=_check,
    # Of what it thinks it sends nothing, and counts it.
    reply=Chats(
        call_id="call_abcDEF{}", shared={"system_fingerprint": "fp_1", "service_tier": "default"}
    ).reply,
    options={
        "max_completion_tokens": 4000, "reasoning_effort": "high", "parallel_tool_calls": True,
        "store": False, "stream_options": {"include_usage": True},
    },
    errors={
        "NoCredit": Refusal(429, error(_QUOTA, "insufficient_quota", "insufficient_quota")),
        "BadKey": Refusal(
            401, error("Incorrect API key provided: sk-world.", _INVALID, "invalid_api_key")
        ),
        "RateLimited": Refusal(
            429,
            error("Rate limit reached for gpt-5.4", "requests", "rate_limit_exceeded"),
            {"retry_after_ms": "31500"},
        ),
        "ContextTooLong": Refusal(
            400,
            error(
                "This model's maximum context length is 1050000 tokens. However, your messages "
                "resulted in 1100000 tokens.",
                _INVALID, "context_length_exceeded", "messages",
            ),
        ),
        "Overloaded": Refusal(
            503, error("The engine is currently overloaded.", "server_error", "overloaded")
        ),
        "Filtered": Refusal(
            400,
            error(
                "Your request was rejected as a result of our safety system.",
                _INVALID, "content_policy_violation",
            ),
        ),
        "ModelGone": Refusal(
            404, error("The model `gpt-5.4` does not exist.", _INVALID, "model_not_found")
        ),
    },
)  # fmt: skip
