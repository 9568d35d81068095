"""What errors of twelve providers mean: where a request goes then, and what its client reads."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.routes.fallback import CANNOT_TAKE, fallback_kind
from tests.gateway.providers.played import ALONE, OWN_WORDS, TWELVE, Played
from tests.gateway.providers.recorded import TASK
from tests.gateway.providers.scripted import Kind, Script, event

pytestmark = pytest.mark.long

QUESTION: Any = [{"role": "user", "content": TASK}]
# The words of `spec.fallback` by which another target may be asked.
FALLBACKS: dict[Kind, set[str]] = {
    "NoCredit": {"ServerError", "RateLimited"},
    "BadKey": {"ServerError"},
    "RateLimited": {"RateLimited"},
    "ContextTooLong": {"Context"},
    # Some say so by the status of too many requests.
    "Overloaded": {"Overloaded", "ServerError", "RateLimited"},
    "Filtered": {"ContentFilter"},
    "ModelGone": {"ServerError", "cannot take it"},
}
STATUSES: dict[Kind, set[int]] = {
    # It is no fault of the client, nor of its key.
    "NoCredit": {502, 503},
    "BadKey": {502, 503},
    "RateLimited": {429, 503},
    "ContextTooLong": {400, 413},
    "Overloaded": {429, 502, 503, 529},
    "Filtered": {400},
    "ModelGone": {400, 404, 502},
}
MESSAGES_TYPES: dict[Kind, set[str]] = {
    "NoCredit": {"api_error", "overloaded_error"},
    "BadKey": {"api_error", "overloaded_error"},
    "RateLimited": {"rate_limit_error", "overloaded_error"},
    "ContextTooLong": {"invalid_request_error", "request_too_large"},
    "Overloaded": {"overloaded_error", "api_error", "rate_limit_error"},
    "Filtered": {"invalid_request_error"},
    "ModelGone": {"not_found_error", "invalid_request_error", "api_error"},
}


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Before a call is repeated whose provider does not say when.
    monkeypatch.setattr("tessera.gateway.outside.source._REPEAT_SECONDS", 0.0)


async def asked(play: Played, script: Script, ending: str = "", *, stream: bool = False) -> str:
    """Return the text of an answer on the route of a provider."""
    name = script.name + ending
    if script.protocol == "AnthropicMessages":
        if stream:
            async with play.anthropic.messages.stream(
                model=name, messages=QUESTION, max_tokens=100
            ) as events:
                return await events.get_final_text()
        message: Any = await play.anthropic.messages.create(
            model=name, messages=QUESTION, max_tokens=100
        )
        return str(message.content[0].text)
    if stream:
        chunks = await play.openai.chat.completions.create(
            model=name, messages=QUESTION, stream=True
        )
        return "".join([each.choices[0].delta.content or "" async for each in chunks])
    answer = await play.openai.chat.completions.create(model=name, messages=QUESTION)
    return str(answer.choices[0].message.content)


def kind_of_fallback(play: Played, script: Script) -> str | None:
    """Return the word by which another target is asked after the last error of a provider."""
    (reason,) = filter(None, play.outside.states[script.name].ended)
    is_invalid = RequestReason(reason) in CANNOT_TAKE
    return "cannot take it" if is_invalid else fallback_kind(RequestReason(reason))


# Each is that of a provider for which the status says something else, or nothing.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("anthropic", "NoCredit"),
        ("google", "BadKey"),
        ("xai", "ContextTooLong"),
        ("zai", "Filtered"),
        ("moonshotai", "Overloaded"),
        ("openrouter", "Overloaded"),
        ("deepseek", "ModelGone"),
        ("quarry", "RateLimited"),
    ],
)
async def test_another_target_answers_after_each_kind_of_error(
    play: Played, name: str, kind: Kind
) -> None:
    script = play.scripts[name]
    script.outage = script.errors[kind]
    assert await asked(play, script) == OWN_WORDS
    assert kind_of_fallback(play, script) in FALLBACKS[kind]


async def error_of(
    play: Played, script: Script
) -> openai.APIStatusError | anthropic.APIStatusError:
    try:
        await asked(play, script, ALONE)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return error
    raise AssertionError("it was answered")


def faults_of(
    error: openai.APIStatusError | anthropic.APIStatusError, script: Script, kind: Kind
) -> Iterator[str]:
    """Yield what a client does not read as its protocol has it."""
    if error.status_code not in STATUSES[kind]:
        yield f"status {error.status_code}"
    body: Any = json.loads(error.response.content)
    if script.protocol == "AnthropicMessages":
        if body.get("type") != "error" or not {"type", "message"} <= set(body["error"]):
            yield f"no error of Messages: {body}"
        elif body["error"]["type"] not in MESSAGES_TYPES[kind]:
            yield body["error"]["type"]
        # By this coding clients know that they have to shorten their conversation.
        elif kind == "ContextTooLong" and "prompt is too long" not in str(body).lower():
            yield body["error"]["message"]
    else:
        code = body["error"]["code"]
        if kind == "ContextTooLong" and code != "context_length_exceeded":
            yield f"code {code}"
        if kind == "Filtered" and not str(code).startswith("content_"):
            yield f"code {code}"
    for word in ("org_1", "org-1", "console.", "16f2151a", "sk***"):
        if word in str(body):
            yield f"an account of the installation: {word}"


@pytest.mark.parametrize("name", [script.name for script in TWELVE])
async def test_errors_are_understood_and_told_in_the_words_of_the_protocol(
    play: Played, name: str
) -> None:
    script = play.scripts[name]
    wrong: dict[Kind, list[str]] = {}
    for kind, outage in script.errors.items():
        play.outside.states.clear()
        script.outage = outage
        faults = list(faults_of(await error_of(play, script), script, kind))
        word = kind_of_fallback(play, script)
        faults += [] if word in FALLBACKS[kind] else [f"fallback {word}"]
        if faults:
            wrong[kind] = faults
    assert not wrong


# `retry-after` in seconds and in fractions of them, in milliseconds, and as a date.
@pytest.mark.parametrize("name", ["anthropic", "slate", "openai", "groq", "openrouter", "quarry"])
async def test_a_client_waits_as_long_as_the_provider_asks(play: Played, name: str) -> None:
    script = play.scripts[name]
    script.outage = script.errors["RateLimited"]
    error = await error_of(play, script)
    assert 31 <= int(error.response.headers["retry-after"]) <= 60
    # It is left alone for so long.
    script.outage = None
    assert await asked(play, script) == OWN_WORDS
    assert not script.answered


@pytest.mark.parametrize(
    ("name", "kind"),
    [("openai", "ContextTooLong"), ("zai", "Filtered"), ("anthropic", "ContextTooLong")],
)
async def test_what_one_request_is_refused_for_ejects_no_provider(
    play: Played, name: str, kind: Kind
) -> None:
    script = play.scripts[name]
    script.outage = script.errors[kind]
    for _ in range(4):
        assert await asked(play, script) == OWN_WORDS
    script.outage = None
    assert await asked(play, script) != OWN_WORDS
    assert len(script.answered) == 1


BEGUN = {
    # https://openrouter.ai/docs/api-reference/streaming
    "openrouter": [
        b": OPENROUTER PROCESSING\n\n",
        event(
            {
                "id": "cmpl-abc123",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "anthropic/claude-sonnet-4.6",
                "provider": "Anthropic",
                "error": {"code": 429, "message": "Rate limit exceeded"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            }
        ),
    ],
    # https://platform.claude.com/docs/en/api/streaming
    "anthropic": [
        event(
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "error",
        ),
    ],
    # https://platform.claude.com/docs/en/api/errors: after a 200, an error may come at any time.
    "slate": [
        event({"type": "ping"}, "ping"),
        event(
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "prompt is too long"},
            },
            "error",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("openrouter", {"RateLimited"}),
        ("anthropic", FALLBACKS["Overloaded"]),
        ("slate", {"Context"}),
    ],
)
async def test_an_error_before_the_first_token_of_a_stream_means_the_same(
    play: Played, name: str, kinds: set[str]
) -> None:
    script = play.scripts[name]
    script.outage = BEGUN[name]
    assert (await asked(play, script, stream=True)).strip() == OWN_WORDS
    assert kind_of_fallback(play, script) in kinds
