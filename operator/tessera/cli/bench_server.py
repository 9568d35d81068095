"""What has to be known of a server before it is put under load."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from tessera.adapters.openai_api import CHAT, COMPLETIONS, OpenAiApi, ServerError
from tessera.cli.bench_prompts import Tongue, tongue, words
from tessera.cli.errors import CommandError
from tessera.domain.bench.answers import Answer
from tessera.domain.bench.jobs import Job

_KEY = (
    "put the API key into TESSERA_API_KEY, or into a file for --api-key-file; it is never an "
    "argument, which others on the machine could read"
)
_SHORT, _LONG = 32, 288
"""Words of the two requests that show how long a word is."""
_PROBE_TOKENS = 8


def base_of(url: str) -> str:
    """The URL without `/v1`; CommandError when it is none."""
    told = urlsplit(url)
    try:
        usable = told.scheme in ("http", "https") and told.hostname and told.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise CommandError(f"{url}: write a URL with its scheme, such as http://127.0.0.1:8000")
    if told.username or told.password:
        raise CommandError(f"no password in the URL: {_KEY}")
    return url.split("?", maxsplit=1)[0].rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What `/v1/models` offers."""

    name: str
    longest: int | None
    """Tokens of prompt and answer together, where the server says it."""


async def chosen(api: OpenAiApi, wanted: str | None) -> Model:
    """The model to ask; CommandError with those that there are."""
    offered = await _offered(api)
    names = [model.name for model in offered]
    if wanted is not None:
        for model in offered:
            if model.name == wanted:
                return model
        near = difflib.get_close_matches(wanted, names) or names
        raise CommandError(f"{api.base} has no model {wanted}; it has {', '.join(near)}")
    if len(offered) != 1:
        raise CommandError(f"which model? --model one of {', '.join(names)}")
    return offered[0]


async def _offered(api: OpenAiApi) -> list[Model]:
    url = f"{api.base}/v1/models"
    try:
        status, body = await api.get(url)
    except ServerError as error:
        raise CommandError(
            f"{api.base} does not answer: {error}. Is the server up, and are host and port right? "
            f"Try curl {url}"
        ) from error
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise CommandError(f"{api.base} does not let us in ({status}): {_KEY}")
    try:
        if status != HTTPStatus.OK:
            raise ValueError
        found = [
            Model(name=str(one["id"]), longest=_whole(one.get("max_model_len")))
            for one in json.loads(body)["data"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CommandError(
            f"{api.base} is no OpenAI API: GET /v1/models answers {status} "
            f"{body[:80].decode(errors='replace').strip()!r}. Give the URL that stands before /v1"
        ) from None
    if not found:
        raise CommandError(f"{api.base} serves no model: GET /v1/models lists none")
    return found


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How requests are written."""

    path: str = CHAT
    model: str
    natural_end: bool = False
    usage: bool = True

    def body(self, text: str, tokens: int) -> Mapping[str, Any]:
        """One streamed request."""
        prompt: dict[str, Any] = {"prompt": text}
        if self.path == CHAT:
            prompt = {"messages": [{"role": "user", "content": text}]}
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if self.usage else {}
        end: dict[str, Any] = {} if self.natural_end else {"ignore_eos": True}
        return {
            "model": self.model,
            **prompt,
            "max_tokens": tokens,
            "stream": True,
            **options,
            **end,
        }


async def learned(api: OpenAiApi, manner: Manner, seed: int) -> tuple[Manner, Tongue]:
    """Two short requests show whether it answers, whether it tells usage, and how long words are.

    CommandError with what to change when it does not answer.
    """
    short = await _probe(api, manner, seed, _SHORT)
    if manner.usage and short.failure == "Http400" and "stream_options" in short.detail:
        manner = replace(manner, usage=False)
        short = await _probe(api, manner, seed, _SHORT)
    _must(short, manner, api)
    long = await _probe(api, manner, seed, _LONG)
    if long.prompt_tokens is None or short.prompt_tokens is None or not long.whole:
        return manner, Tongue()
    return manner, tongue((_SHORT, short.prompt_tokens), (_LONG, long.prompt_tokens))


async def _probe(api: OpenAiApi, manner: Manner, seed: int, count: int) -> Answer:
    job = Job(number=0, input_tokens=count, output_tokens=_PROBE_TOKENS)
    text = words(f"{seed} probe {count}", count)
    return await api.answer(manner.path, manner.body(text, _PROBE_TOKENS), job)


def _must(first: Answer, manner: Manner, api: OpenAiApi) -> None:
    if first.whole:
        return
    mends = (
        (first.failure in ("Http401", "Http403"), _KEY),
        (first.failure in ("Http404", "Http405"), f"has it another path? {_other(manner)}"),
        ("chat template" in first.detail, f"the model has no chat template: {_other(manner)}"),
        (
            "ignore_eos" in first.detail,
            "it does not know vLLM's ignore_eos: add --natural-end, and answers end where they end",
        ),
        (first.failure == "Timeout", "give it longer with --timeout"),
    )
    mend = next((text for applies, text in mends if applies), "see the server's log")
    raise CommandError(
        f"the first request to {api.base}{manner.path} failed: {first.failure} {first.detail}. "
        f"{mend[0].upper()}{mend[1:]}"
    )


def _other(manner: Manner) -> str:
    other = "completions" if manner.path == CHAT else "chat"
    return f"try --endpoint {other}"


PATHS = {"chat": CHAT, "completions": COMPLETIONS}
