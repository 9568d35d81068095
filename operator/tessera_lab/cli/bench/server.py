"""What a load test has to know of a server first."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from tessera.cli.errors import CommandError
from tessera_lab.cli.bench.prompts import TokenRatio, random_words, token_ratio
from tessera_lab.load.openai_client import CHAT, COMPLETIONS, OpenAiClient, ServerError
from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.responses import BenchResponse

_KEY = (
    "put the API key into TESSERA_API_KEY, or into a file for --api-key-file; it is never an "
    "argument, which others on the machine could read"
)
# Words of the two requests that measure tokens per word.
_SHORT, _LONG = 32, 288
_PROBE_TOKENS = 8


def base_url(url: str) -> str:
    """Return the URL without `/v1`; raise CommandError when it is none."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise CommandError(f"{url}: write a URL with its scheme, such as http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise CommandError(f"no password in the URL: {_KEY}")
    return url.split("?", maxsplit=1)[0].rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that `/v1/models` lists."""

    name: str
    max_tokens: int | None
    """Tokens of prompt and output together, where the server says it."""


async def choose_model(api: OpenAiClient, name: str | None) -> ServedModel:
    """Return the model to test; raise CommandError with those that exist."""
    models = await _list_models(api)
    names = [model.name for model in models]
    if name is not None:
        for model in models:
            if model.name == name:
                return model
        nearest = difflib.get_close_matches(name, names) or names
        raise CommandError(f"{api.base} has no model {name}; it has {', '.join(nearest)}")
    if len(models) != 1:
        raise CommandError(
            f"{api.base} has several models: set --model to one of {', '.join(names)}"
        )
    return models[0]


async def _list_models(api: OpenAiClient) -> list[ServedModel]:
    url = f"{api.base}/v1/models"
    try:
        status, body = await api.get(url)
    except ServerError as error:
        raise CommandError(
            f"{api.base} does not respond: {error}. Is the server up, and are host and port right? "
            f"Try curl {url}"
        ) from error
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise CommandError(f"{api.base} refuses access ({status}): {_KEY}")
    try:
        if status != HTTPStatus.OK:
            raise ValueError
        models = [
            ServedModel(name=str(entry["id"]), max_tokens=_positive_int(entry.get("max_model_len")))
            for entry in json.loads(body)["data"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CommandError(
            f"{api.base} is not an OpenAI API: GET /v1/models returns {status} "
            f"{body[:80].decode(errors='replace').strip()!r}. Give the URL before /v1"
        ) from None
    if not models:
        raise CommandError(f"{api.base} serves no model: GET /v1/models lists none")
    return models


def _positive_int(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFormat:
    """The format of requests."""

    path: str = CHAT
    model: str
    natural_end: bool = False
    usage: bool = True

    def body(self, text: str, tokens: int) -> Mapping[str, Any]:
        """Return the body of one streamed request."""
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


async def probe_server(
    api: OpenAiClient, request_format: RequestFormat, seed: int
) -> tuple[RequestFormat, TokenRatio]:
    """Send two short requests: do they complete, with usage, and how many tokens has a word?

    Raises CommandError with what to change when they do not complete.
    """
    short = await _probe(api, request_format, seed, _SHORT)
    if request_format.usage and short.failure == "Http400" and "stream_options" in short.detail:
        request_format = replace(request_format, usage=False)
        short = await _probe(api, request_format, seed, _SHORT)
    _require_complete(short, request_format, api)
    long = await _probe(api, request_format, seed, _LONG)
    if long.prompt_tokens is None or short.prompt_tokens is None or not long.complete:
        return request_format, TokenRatio()
    return request_format, token_ratio((_SHORT, short.prompt_tokens), (_LONG, long.prompt_tokens))


async def _probe(
    api: OpenAiClient, request_format: RequestFormat, seed: int, count: int
) -> BenchResponse:
    request = BenchRequest(number=0, input_tokens=count, output_tokens=_PROBE_TOKENS)
    text = random_words(f"{seed} probe {count}", count)
    return await api.send(request_format.path, request_format.body(text, _PROBE_TOKENS), request)


def _require_complete(
    first: BenchResponse, request_format: RequestFormat, api: OpenAiClient
) -> None:
    if first.complete:
        return
    fixes = (
        (first.failure in ("Http401", "Http403"), _KEY),
        (
            first.failure in ("Http404", "Http405"),
            f"is the path another one? {_other_endpoint(request_format)}",
        ),
        (
            "chat template" in first.detail,
            f"the model has no chat template: {_other_endpoint(request_format)}",
        ),
        (
            "ignore_eos" in first.detail,
            "the server does not know vLLM's ignore_eos: add --natural-end, which lets output end "
            "earlier",
        ),
        (first.failure == "Timeout", "raise --timeout"),
    )
    fix = next((text for applies, text in fixes if applies), "see the server's log")
    raise CommandError(
        f"the first request to {api.base}{request_format.path} failed: {first.failure} "
        f"{first.detail}. "
        f"{fix[0].upper()}{fix[1:]}"
    )


def _other_endpoint(request_format: RequestFormat) -> str:
    endpoint = "completions" if request_format.path == CHAT else "chat"
    return f"try --endpoint {endpoint}"


PATHS = {"chat": CHAT, "completions": COMPLETIONS}
