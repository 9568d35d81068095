"""Z.ai.

https://docs.z.ai/api-reference/llm/chat-completion, https://docs.z.ai/guides/overview/pricing
https://docs.z.ai/guides/capabilities/thinking-mode.md (thoughts have to be returned with results of
tools; they are not checked)
https://docs.z.ai/api-reference/api-code.md (errors have numbers of their own as texts)
https://github.com/zai-org/GLM-5/issues/148 (1113)
https://openrouter.ai/~z-ai/glm-latest/api (glm-5.3: 1.40, 0.26, 4.40)
"""

from tests.gateway.providers.chats import Chats, in_the_last_chunk, unknown_field
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import Json, Prices, Refusal, Script, Tokens


def _error(status: int, code: int, message: str) -> Refusal:
    return Refusal(status, {"error": {"code": str(code), "message": message}})


def _refuse(name: str, place: str) -> Refusal:
    return _error(400, 1210, f"Incorrect API call parameters, please check: {place}{name}")


def _check(body: Json) -> Refusal | None:
    return unknown_field(
        body,
        _refuse,
        top="max_tokens do_sample thinking reasoning_effort tool_stream request_id user_id",
        message="reasoning_content",
    )


def _usage(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def _thought(step: Step) -> Json:
    return {"reasoning_content": step.thought}


SCRIPT = Script(
    name="zai",
    dialect="zai",
    model="glm-5.3",
    path="/api/paas/v4",
    prices=Prices(input="1.40", cached="0.26", output="4.40"),
    spec={"maxContextTokens": 1_048_576},
    check=_check,
    reply=Chats(
        usage=_usage, thought=_thought, ending=in_the_last_chunk, shared={"request_id": "2026"}
    ).reply,
    options={"max_tokens": 4000},
    errors={
        "NoCredit": _error(
            429, 1113, "Insufficient balance or no resource package. Please recharge."
        ),
        "BadKey": _error(401, 1000, "Authentication Failed"),
        "RateLimited": _error(429, 1302, "High concurrency usage of this API, please reduce it"),
        "ContextTooLong": _error(400, 1261, "Prompt exceeds max length"),
        "Overloaded": _error(
            429, 1305, "The API has triggered a rate limit due to current high traffic"
        ),
        "Filtered": _error(
            400,
            1301,
            "System detected potentially unsafe or sensitive content in input or generation.",
        ),
        "ModelGone": _error(400, 1211, "Model does not exist, please check the model code"),
    },
)
