"""Moonshot's Kimi.

https://platform.kimi.ai/docs/guide/use-kimi-k2-thinking-model (thinking is on by default)
https://platform.kimi.ai/docs/guide/kimi-k2-5-quickstart (it can be switched off)
https://platform.kimi.ai/docs/api/errors
https://github.com/earendil-works/pi/issues/2017 (counts of a stream stand in the choice)
https://github.com/vercel/ai/pull/12352 (hits at the top)
https://github.com/earendil-works/pi/pull/4178 (an empty `reasoning_content` is as none)
https://github.com/Bike4Mind/bike4mind/pull/1089 (temperature, hits are part of the prompt)
https://github.com/MoonshotAI/kimi-code/pull/1857 (no balance is a 429 without `retry-after`)
https://docs.apiyi.com/en/models/kimi-k3.md (3, 0.30, 15)
"""

from dataclasses import replace

from tests.gateway.providers.chats import Chats, counts, unknown_field
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import (
    Json,
    Prices,
    Refusal,
    Script,
    Tokens,
    assistant_calls,
)


def _error(status: int, kind: str, message: str) -> Refusal:
    return Refusal(status, {"error": {"message": message, "type": kind}})


def _invalid(text: str) -> Refusal:
    return _error(400, "invalid_request_error", text)


def _refuse(name: str, place: str) -> Refusal:
    return _invalid(f"Invalid request: unknown field {place}{name}")


def _check(body: Json) -> Refusal | None:
    if body.get("temperature", 1) != 1:
        return _invalid("invalid temperature: only 1 is allowed for this model")
    thinks = body.get("thinking") != {"type": "disabled"}
    for place, message in assistant_calls(body) if thinks else ():
        if not message.get("reasoning_content"):
            return _invalid(
                "thinking is enabled but reasoning_content is missing in assistant tool call "
                f"message at index {place}"
            )
    return unknown_field(
        body,
        _refuse,
        top="max_tokens max_completion_tokens n presence_penalty frequency_penalty "
        "thinking reasoning_effort prompt_cache_key safety_identifier",
        message="name partial reasoning_content",
    )


def _counts(body: Json, step: Step, *, thinks: bool) -> Tokens:
    # What of an answer is reasoning, its counts do not say.
    return replace(counts(body, step, thinks=thinks), reasoning=None)


def _usage(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "cached_tokens": tokens.cached,
    }


def _thought(step: Step) -> Json:
    return {"reasoning_content": step.thought}


def _ending(counted: Json, last: Json, _: bool) -> list[Json]:
    (choice,) = last["choices"]
    return [{**last, "choices": [{**choice, "usage": counted}]}]


SCRIPT = Script(
    name="moonshotai",
    dialect="moonshotai",
    model="kimi-k3",
    prices=Prices(input="3", cached="0.30", output="15"),
    spec={"maxContextTokens": 1_048_576},
    check=_check,
    reply=Chats(
        counts=_counts, usage=_usage, thought=_thought, ending=_ending, call_id="Read:{}"
    ).reply,
    options={"max_tokens": 4000},
    errors={
        "NoCredit": _error(
            429,
            "exceeded_current_quota_error",
            "Your account org-1 is suspended due to insufficient balance, please recharge your "
            "account or check your plan and billing details",
        ),
        "BadKey": _error(401, "invalid_authentication_error", "Invalid Authentication"),
        "RateLimited": _error(
            429,
            "rate_limit_reached_error",
            "Your account org-1 request reached organization max RPM: 20, please try again after "
            "31 seconds",
        ),
        "ContextTooLong": _invalid("Your request exceeded model token limit : 1048576"),
        "Overloaded": _error(
            429, "engine_overloaded_error", "The engine is currently overloaded, please try later"
        ),
        "Filtered": _error(
            400, "content_filter", "The request was rejected because it was considered high risk"
        ),
        "ModelGone": _error(
            404, "resource_not_found_error", "Not found the model or Permission denied"
        ),
    },
)
