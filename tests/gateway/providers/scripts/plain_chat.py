"""A small provider that nobody knows: it speaks chats as the reference has them, and no more.

Its own page: "We serve the Chat Completions API of OpenAI. Unknown fields are an error." A pause is
asked for as a date.
"""

from tests.gateway.providers.chats import Chats, choice_without_tools, unknown_field
from tests.gateway.providers.scripted import Json, Prices, Refusal, Script, error

_INVALID = "invalid_request_error"
RETRY_AT = "Tue, 01 Dec 2099 08:00:00 GMT"


def _refuse(name: str, place: str) -> Refusal:
    return Refusal(400, error(f"{place}{name}: unknown field", _INVALID, None, f"{place}{name}"))


def _check(body: Json) -> Refusal | None:
    if name := choice_without_tools(body):
        return Refusal(400, error(f"{name}: no tools", _INVALID, None, name))
    return unknown_field(
        body,
        _refuse,
        top="max_tokens max_completion_tokens n presence_penalty frequency_penalty seed logprobs "
        "top_logprobs logit_bias parallel_tool_calls user",
        message="name refusal",
    )


SCRIPT = Script(
    name="quarry",
    model="quarry/small-2",
    prices=Prices(input="0.20", cached="0.05", output="0.90"),
    spec={"maxContextTokens": 200_000, "reasoning": False},
    check=_check,
    reply=Chats(thinks=False).reply,
    options={"max_tokens": 4000, "parallel_tool_calls": False},
    errors={
        "NoCredit": Refusal(402, error("Please add credit to your account.", "billing_error")),
        "BadKey": Refusal(403, error("This key was revoked.", "authentication_error")),
        "RateLimited": Refusal(
            429, error("Too many requests.", "rate_limit_error"), {"retry_after": RETRY_AT}
        ),
        "ContextTooLong": Refusal(
            413, error("The prompt is too long.", _INVALID, "context_length_exceeded")
        ),
        "Overloaded": Refusal(503, error("Busy.", "overloaded_error")),
        "Filtered": Refusal(400, error("Filtered.", _INVALID, "content_filter")),
        "ModelGone": Refusal(404, error("No such model.", _INVALID, "model_not_found")),
    },
)
