"""Requests that both engines get in order; the state after one case is that before the next.

The first cases of each list are the captured examples, with their headings as names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.configurations import CONTEXT, KEY

Json = dict[str, Any]

COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "A tessera is one tile"}]
LONG_TEXT = "tile " * (CONTEXT + 200)
MIDDLE_TEXT = "tile " * 300


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCase:
    """One request."""

    name: str
    path: str
    method: str = "POST"
    body: Any = None
    """JSON, or text that is sent as it is."""
    headers: Mapping[str, str] = field(default_factory=dict)
    key: bool = True
    """Whether the request has the configuration's API key."""


def _get(name: str, path: str, *, key: bool = True) -> EngineCase:
    return EngineCase(name=name, path=path, method="GET", key=key)


def _completion(name: str, **body: Any) -> EngineCase:
    request_body = {"prompt": "A tessera is", "temperature": 0, "max_tokens": 3, **body}
    return EngineCase(name=name, path=COMPLETION, body=request_body)


def _chat(name: str, **body: Any) -> EngineCase:
    request_body = {"messages": HELLO, "temperature": 0, "max_tokens": 3, **body}
    return EngineCase(name=name, path=CHAT, body=request_body)


# Tokens enough for some to come alone: the engine sends together what a busy client has not read.
_COUNTED: Json = {"max_tokens": 24, "stream": True, "stream_options": {"include_usage": True}}
_RUNNING: Json = {
    "max_tokens": 24,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}

PLAIN: tuple[EngineCase, ...] = (
    _completion("completion", logprobs=2, max_tokens=8, ignore_eos=True),
    _chat("chat", logprobs=True, top_logprobs=3, max_tokens=5, ignore_eos=True),
    _chat("stream", **_RUNNING, ignore_eos=True),
    _completion("stream compl", **_COUNTED, ignore_eos=True),
    _completion("too long", prompt=LONG_TEXT),
    _chat("too long chat", messages=[{"role": "user", "content": LONG_TEXT}]),
    _completion("max_tokens too big", max_tokens=5000),
    _completion("bad model", model="nope"),
    _completion("bad param", temperature=-1.0),
    _completion("bad json type", max_tokens="x"),
    _completion("logprobs too many", logprobs=50),
    _completion("priority fcfs", priority=5, max_tokens=1),
    _get("load", "/load"),
    _get("ping", "/ping"),
    _get("sleeping", "/is_sleeping"),
    EngineCase(
        name="lora load", path="/v1/load_lora_adapter", body={"lora_name": "x", "lora_path": "/x"}
    ),
    _chat(
        "json schema",
        max_tokens=64,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": _SCHEMA, "strict": True},
        },
    ),
)
PLAIN_MORE: tuple[EngineCase, ...] = (
    _get("version", "/version"),
    _get("health", "/health"),
    EngineCase(name="ping posted", path="/ping"),
    _get("models", "/v1/models"),
    _get("unknown path", "/v1/nothing"),
    _get("wrong method", COMPLETION),
    EngineCase(name="no json", path=COMPLETION, body="{"),
    EngineCase(name="no body", path=COMPLETION),
    EngineCase(
        name="wrong content type", path=COMPLETION, body="a", headers={"Content-Type": "text/plain"}
    ),
    _completion("no prompt", prompt=None),
    _completion("empty prompt", prompt=""),
    _completion("several prompts", prompt=["one", "two"]),
    _completion("tokens as prompt", prompt=[10, 11, 12]),
    _completion("token out of range", prompt=[10, 99_999_999]),
    _completion("two answers", n=2, temperature=0.9, seed=1),
    _completion("two answers streamed", n=2, temperature=0.9, seed=1, **_COUNTED),
    _completion("two greedy answers", n=2),
    _completion("echo", echo=True),
    _completion("echo with logprobs", echo=True, logprobs=1),
    _completion("prompt logprobs", prompt_logprobs=1),
    _completion("no tokens", max_tokens=0),
    _completion("stop string", stop=["never seen"], max_tokens=200, ignore_eos=True),
    _completion("min_tokens too big", min_tokens=9),
    _completion("top_p out of range", top_p=2.0),
    _completion("top_k out of range", top_k=-5),
    _completion("n is zero", n=0),
    _completion("stream options alone", stream_options={"include_usage": True}),
    _completion("streamed logprobs", logprobs=1, stream=True, max_tokens=24),
    _completion("streamed running usage", **_RUNNING),
    _completion("token ids", return_token_ids=True),
    _completion("too long with answer", prompt=MIDDLE_TEXT, max_tokens=1000, ignore_eos=True),
    _completion("bad schema", structured_outputs={"regex": "("}),
    _completion("negative logprobs", logprobs=-2),
    _chat("two chats", n=2, temperature=0.9, seed=1),
    _chat("chat stream", stream=True, max_tokens=24),
    _chat("chat stream logprobs", stream=True, logprobs=True, top_logprobs=1, max_tokens=24),
    _chat("no messages", messages=[]),
    _chat("messages of a wrong type", messages="hello"),
    _chat("unknown role", messages=[{"role": "x", "content": "y"}]),
    _chat("top_logprobs alone", top_logprobs=2),
    _chat("top_logprobs too many", logprobs=True, top_logprobs=50),
    _chat("chat token ids", return_token_ids=True),
    _chat("chat bad model", model="nope"),
    _chat("chat max_completion_tokens", max_completion_tokens=2),
    _chat(
        "tools without a parser",
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice="auto",
    ),
)


def rich(adapter: str) -> tuple[EngineCase, ...]:
    """Return cases with every option on; `adapter` is the folder of a LoRA adapter."""
    return (
        EngineCase(name="no key", path=COMPLETION, body={"prompt": "a"}, key=False),
        _get("health no key", "/health", key=False),
        _get("metrics no key", "/metrics", key=False),
        _get("load nokey", "/load", key=False),
        _get("is_sleeping nokey", "/is_sleeping", key=False),
        _get("models", "/v1/models"),
        _load("lora load", adapter),
        _load("lora load again", adapter),
        _load("lora load inplace", adapter, load_inplace=True),
        _load("lora bad path", "/nowhere", lora_name="l2"),
        _get("models with an adapter", "/v1/models"),
        _completion("use lora", model="l1", max_tokens=8),
        _completion("use base", model="base", max_tokens=8),
        _unload("lora unload", "l1"),
        _unload("lora unload missing", "zz"),
        _get("sleeping?", "/is_sleeping"),
        EngineCase(name="sleep", path="/sleep?level=1"),
        _get("sleeping? asleep", "/is_sleeping"),
        EngineCase(name="wake", path="/wake_up"),
        _get("sleeping? awake", "/is_sleeping"),
        EngineCase(name="pause", path="/pause"),
        _get("is_paused", "/is_paused"),
        EngineCase(name="resume", path="/resume"),
        _completion("prompt tok details", prompt=MIDDLE_TEXT, max_tokens=2),
        _completion("prompt tok details 2 (prefix hit)", prompt=MIDDLE_TEXT, max_tokens=2),
        _get("load", "/load"),
    )


def rich_more(adapter: str) -> tuple[EngineCase, ...]:
    """Return cases for paths of development, and for what only these options change."""
    return (
        _get("unknown path without a key", "/v1/nothing", key=False),
        EngineCase(
            name="wrong key",
            path=COMPLETION,
            body={"prompt": "a"},
            headers={"Authorization": "Bearer wrong"},
            key=False,
        ),
        EngineCase(
            name="lower-case scheme",
            path=COMPLETION,
            body={"prompt": "a", "max_tokens": 1},
            headers={"Authorization": f"bearer {KEY}"},
            key=False,
        ),
        EngineCase(
            name="own request id",
            path=COMPLETION,
            body={"prompt": "a", "max_tokens": 1},
            headers={"X-Request-Id": "mine"},
        ),
        _completion("alias", model="alias"),
        _completion("unloaded adapter", model="l1"),
        _completion("streamed with metrics", **_COUNTED),
        _chat("chat with metrics"),
        _chat("chat streamed with metrics", **_COUNTED),
        _completion("priority", priority=-3),
        _completion("priority no number", priority="x"),
        EngineCase(name="load without a name", path="/v1/load_lora_adapter", body={}),
        _load("load an empty name", adapter, lora_name=""),
        _unload("unload without a name", ""),
        EngineCase(name="sleep deeper", path="/sleep?level=2"),
        EngineCase(name="wake tagged", path="/wake_up?tags=weights"),
        EngineCase(name="wake the rest", path="/wake_up"),
        EngineCase(name="sleep to no level", path="/sleep?level=x"),
        EngineCase(name="sleep too deep", path="/sleep?level=7"),
        EngineCase(name="wake after it", path="/wake_up"),
        EngineCase(name="pause, keeping", path="/pause?mode=keep"),
        EngineCase(name="resume after it", path="/resume"),
        EngineCase(name="pause, waiting", path="/pause?mode=wait"),
        EngineCase(name="resume once more", path="/resume"),
        EngineCase(name="pause in no mode", path="/pause?mode=x"),
        EngineCase(name="reset prefix cache", path="/reset_prefix_cache"),
    )


TIGHT: tuple[EngineCase, ...] = (
    _completion("speculated", max_tokens=20, ignore_eos=True),
    _completion("speculated logprobs", logprobs=1, max_tokens=4, ignore_eos=True),
)


def _load(name: str, path: str, **body: Any) -> EngineCase:
    request_body = {"lora_name": "l1", "lora_path": path, **body}
    return EngineCase(name=name, path="/v1/load_lora_adapter", body=request_body)


def _unload(name: str, adapter: str) -> EngineCase:
    return EngineCase(name=name, path="/v1/unload_lora_adapter", body={"lora_name": adapter})
