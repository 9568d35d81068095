"""Groq.

https://console.groq.com/docs/api-reference#chat-create, https://console.groq.com/docs/errors
https://console.groq.com/docs/prompt-caching (hits cost half)
https://github.com/braintrustdata/braintrust-proxy/issues/925 (openai/gpt-oss-120b: 0.15 and 0.60)
https://github.com/Portkey-AI/gateway/issues/1338 (counts in `x_groq` of the last chunk, and in one
more if they are asked for)
https://github.com/querymt/querymt/pull/745 (`reasoning_content` of a message is refused)
https://github.com/thepersonalaicompany/amurex-backend/issues/51 (context)
https://www.skills.sh/jeremylongshore/tons-of-skills-marketplace/groq-common-errors (rate limit)
"""

from tests.gateway.providers.chats import Chats, unknown_field
from tests.gateway.providers.chats import usage as openai_usage
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import Json, Prices, Refusal, Script, Tokens, error

_INVALID = "invalid_request_error"


def _refuse(name: str, place: str) -> Refusal:
    where = f"'{place}': " if place else ""
    return Refusal(400, error(f"{where}property '{name}' is unsupported", _INVALID))


def _check(body: Json) -> Refusal | None:
    if body.get("n", 1) != 1:
        return Refusal(400, error("'n' : number must be at most 1", _INVALID))
    return unknown_field(
        body,
        _refuse,
        top="max_tokens max_completion_tokens n presence_penalty frequency_penalty seed "
        "parallel_tool_calls reasoning_effort reasoning_format include_reasoning service_tier user "
        "metadata store",
        message="reasoning",
    )


def _usage(tokens: Tokens) -> Json:
    counted = openai_usage(tokens)
    return {
        "queue_time": 0.018,
        "prompt_time": 0.004,
        "completion_time": 0.08,
        "total_time": 0.084,
        **{name: counted[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def _ending(counted: Json, last: Json, is_asked: bool) -> list[Json]:
    own = {**last, "x_groq": {"id": "req_01k603zd", "usage": counted}}
    return [own, {**last, "choices": [], "usage": counted}] if is_asked else [own]


def _thought(step: Step) -> Json:
    return {"reasoning": step.thought}


SCRIPT = Script(
    name="groq",
    dialect="groq",
    model="openai/gpt-oss-120b",
    path="/openai/v1",
    prices=Prices(input="0.15", cached="0.075", output="0.60"),
    spec={"maxContextTokens": 131_072},
    check=_check,
    reply=Chats(usage=_usage, thought=_thought, ending=_ending, call_id="fc_{}").reply,
    options={"max_tokens": 4000, "reasoning_effort": "high"},
    errors={
        "NoCredit": Refusal(
            400,
            error(
                "Organization has been restricted: spend limit reached. Please update your billing "
                "details.",
                _INVALID, "blocked_api_access",
            ),
        ),
        "BadKey": Refusal(401, error("Invalid API Key", _INVALID, "invalid_api_key")),
        "RateLimited": Refusal(
            429,
            error("Rate limit reached for model `openai/gpt-oss-120b`", "tokens",
                  "rate_limit_exceeded"),
            {"retry_after": "33"},
        ),
        "ContextTooLong": Refusal(
            400,
            error(
                "Please reduce the length of the messages or completion.",
                _INVALID, "context_length_exceeded", "messages",
            ),
        ),
        "Overloaded": Refusal(
            503, error("Service Unavailable", "internal_server_error", "service_unavailable")
        ),
        "ModelGone": Refusal(
            404,
            error("The model `openai/gpt-oss-120b` does not exist or you do not have access to it.",
                  _INVALID, "model_not_found"),
        ),
    },
)  # fmt: skip
