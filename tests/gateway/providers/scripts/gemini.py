"""Google's Gemini behind its path for OpenAI's clients.

https://ai.google.dev/gemini-api/docs/openai, https://ai.google.dev/gemini-api/docs/pricing
https://ai.google.dev/gemini-api/docs/thought-signatures
https://discuss.ai.google.dev/t/109823 (`extra_content`, and errors in a list)
https://github.com/mozilla-ai/any-llm/issues/1290 (thoughts are in the total alone)
https://discuss.ai.google.dev/t/127400 (each chunk has counts, which grow)
https://github.com/n4ze3m/page-assist/issues/406 (429)
https://github.com/continuedev/continue/issues/12960 (a bad key is a 400)
"""

from tests.gateway.providers.chats import Chats, counts, unknown_field
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import (
    Json,
    Prices,
    Refusal,
    Script,
    Tokens,
    assistant_calls,
    prompt_tokens,
)

_THOUGHTS = 73
SIGNATURE = "CrICAdHtim827fQ"
# Its page has this for calls of other models.
_OTHERS_SIGNATURE = "skip_thought_signature_validator"


def _error(status: int, message: str, word: str, *details: Json) -> Refusal:
    error = {"code": status, "message": message, "status": word, "details": list(details)}
    return Refusal(status, [{"error": error}])


def _refuse(name: str, place: str) -> Refusal:
    message = (
        f"Invalid JSON payload received. Unknown name \"{name}\" at '{place}': Cannot find field."
    )
    return _error(400, message, "INVALID_ARGUMENT")


def _check(body: Json) -> Refusal | None:
    for place, message in assistant_calls(body):
        call = message["tool_calls"][0]
        google = call.get("extra_content", {}).get("google", {})
        if google.get("thought_signature") not in (SIGNATURE, _OTHERS_SIGNATURE):
            name = call["function"]["name"]
            return _error(
                400,
                "Function call is missing a thought_signature in functionCall parts. This is "
                "required for tools to work correctly. Additional data, function call "
                f"`default_api:{name}` , position {place}.",
                "INVALID_ARGUMENT",
            )
    return unknown_field(
        body,
        _refuse,
        top="max_tokens max_completion_tokens n presence_penalty frequency_penalty seed "
        "parallel_tool_calls reasoning_effort extra_body user",
        message="name refusal extra_content",
        call="id type function extra_content",
    )


def _counts(body: Json, step: Step, *, thinks: bool) -> Tokens:
    spoken = counts(body, step, thinks=False).output
    thought = _THOUGHTS if thinks else 0
    # Of hits in its cache the page says nothing on this path, so there are none.
    return Tokens(prompt=prompt_tokens(body), output=spoken + thought)


def _usage(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output - _THOUGHTS,
        "total_tokens": tokens.prompt + tokens.output,
    }


def _ending(counted: Json, last: Json, _: bool) -> list[Json]:
    """Return the last chunks: each has counts, of which the last are those of the bill."""
    before = {**counted, "completion_tokens": 1, "total_tokens": counted["prompt_tokens"] + 20}
    empty = {"index": 0, "delta": {"content": ""}, "finish_reason": None}
    return [{**last, "choices": [empty], "usage": before}, last | {"usage": counted}]


def _signed(_: Step) -> Json:
    return {"extra_content": {"google": {"thought_signature": SIGNATURE}}}


_RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}
_REASON = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}

SCRIPT = Script(
    name="google",
    dialect="google",
    model="gemini-3.1-pro-preview",
    path="/v1beta/openai",
    prices=Prices(
        input="2", cached="0.20", output="12",
        above=200_000, long_input="4", long_cached="0.40", long_output="18",
    ),
    spec={"maxContextTokens": 1_048_576},
    check=_check,
    reply=Chats(
        counts=_counts, usage=_usage, ending=_ending, call_fields=_signed, call_id="call-{}"
    ).reply,
    options={"max_tokens": 4000, "reasoning_effort": "high"},
    errors={
        "NoCredit": _error(
            429,
            "Your prepayment credits are depleted. Please go to AI Studio to manage your billing.",
            "RESOURCE_EXHAUSTED",
        ),
        "BadKey": _error(
            400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", _REASON
        ),
        "RateLimited": _error(
            429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED", _RETRY
        ),
        "ContextTooLong": _error(
            400,
            "The input token count (1100000) exceeds the maximum number of tokens allowed "
            "(1048576).",
            "INVALID_ARGUMENT",
        ),
        "Overloaded": _error(
            503, "The model is overloaded. Please try again later.", "UNAVAILABLE"
        ),
        "ModelGone": _error(404, "models/gemini-3.1-pro-preview is not found.", "NOT_FOUND"),
    },
)  # fmt: skip
