"""What routes read of a request: the same in all turns of a conversation, whatever it has."""

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tessera.domain.routes.opening import MAX_OPENING_CHARACTERS, RequestOpening
from tessera.gateway.bodies.opening import read_opening
from tessera.gateway.bodies.parsing import parse
from tessera.gateway.paths import PATHS

CHAT = "/v1/chat/completions"
SYSTEM, USER = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}
ANSWER, LATER = {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "add"}}


def opening_of(
    path: str, *, headers: Mapping[str, str] | None = None, tenant: str = "team-a", **body: Any
) -> RequestOpening:
    return opening_of_bytes(path, json.dumps({"model": "m", **body}).encode(), headers, tenant)


def opening_of_bytes(
    path: str, body: bytes, headers: Mapping[str, str] | None = None, tenant: str = "team-a"
) -> RequestOpening:
    sent = {name.encode(): value.encode() for name, value in (headers or {}).items()}
    return read_opening(parse(PATHS[path].decoder, body), sent, tenant)


def a_chat(*messages: Any, **others: Any) -> RequestOpening:
    return opening_of(CHAT, messages=messages, **others)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"messages": [SYSTEM, USER, ANSWER, LATER]}, "Why?"),
        (CHAT, {"messages": [SYSTEM]}, ""),
        (CHAT, {"messages": [user([{"type": "text", "text": "a"}, IMAGE, {"text": "b"}])]}, "a\nb"),
        (CHAT, {"messages": [user(["a", {**IMAGE, "text": None}, "b"])]}, "a\nb"),
        ("/v1/messages", {"max_tokens": 1, "system": "Be", "messages": [USER]}, "Why?"),
        ("/v1/messages/count_tokens", {"messages": [USER]}, "Why?"),
        ("/v1/responses", {"input": "Why?"}, "Why?"),
        ("/v1/responses", {"input": [user([{"type": "input_text", "text": "Why?"}])]}, "Why?"),
        ("/v1/completions", {"prompt": "Why? \u00e9\U0001f600"}, "Why? \u00e9\U0001f600"),
        ("/v1/completions", {"prompt": ["Why?", "And?"]}, "Why?"),
        ("/v1/completions", {"prompt": [1, 2, 3]}, ""),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, ""),
        ("/v1/embeddings", {"input": ["Why?"]}, "Why?"),
        ("/detokenize", {"tokens": [1]}, ""),
    ],
)
def test_the_text_is_the_first_message_of_the_user(
    path: str, body: dict[str, Any], text: str
) -> None:
    opening = opening_of(path, **body)
    assert opening.text == text
    assert len(opening.session) == 16


@pytest.mark.parametrize(
    ("part", "media"),
    [
        (IMAGE, True),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, True),
        ({"type": "input_file", "file_data": "AAAA"}, True),
        ({"type": "image", "source": {"type": "base64", "data": "AAAA"}}, True),
        ({"type": "document", "source": {"type": "text", "data": "Why?"}}, False),
        ({"type": "text", "text": "Why?", "image_url": None}, False),
        ({"type": "text", "text": "image_url"}, False),
    ],
)
def test_media_are_images_and_clips_of_the_first_message(part: Any, media: bool) -> None:
    assert a_chat(SYSTEM, user([part])).media is media
    assert not a_chat(USER, ANSWER, user([part])).media


def test_tools_are_those_that_the_request_offers() -> None:
    assert a_chat(USER, tools=[TOOL]).tools
    assert not a_chat(USER, tools=[]).tools
    assert not a_chat(USER, tools=None).tools
    assert not a_chat(USER).tools


def test_tags_are_pairs_of_the_header() -> None:
    opening = a_chat(USER, headers={"x-tessera-tags": "app=faq,,step=a=b,alone"})
    assert opening.tags == {"app": "faq", "step": "a=b", "alone": ""}


def test_all_turns_of_a_conversation_have_one_opening() -> None:
    first = a_chat(SYSTEM, USER, tools=[TOOL])
    assert a_chat(SYSTEM, USER, ANSWER, LATER, tools=[TOOL], max_tokens=5) == first
    spaced = json.dumps({"model": "m", "messages": [SYSTEM, USER, ANSWER, LATER]}, indent=1)
    compact = json.dumps({"model": "m", "messages": [SYSTEM, USER]}, indent=1)
    assert opening_of_bytes(CHAT, spaced.encode()) == opening_of_bytes(CHAT, compact.encode())


def test_a_mark_for_the_cache_on_the_newest_message_moves_no_conversation() -> None:
    part = {"type": "text", "text": "Why?"}
    marked = part | {"cache_control": {"type": "ephemeral"}}
    first, later = (
        opening_of("/v1/messages", max_tokens=1, system="Be short.", messages=messages)
        for messages in ([user([marked])], [user([part]), ANSWER, user([marked])])
    )
    assert first == later


@pytest.mark.parametrize(
    "other",
    [
        a_chat(SYSTEM, LATER),
        a_chat(USER),
        a_chat({"role": "system", "content": "Be long."}, USER),
        a_chat(SYSTEM, USER, tenant="team-b"),
        a_chat(SYSTEM, USER, headers={"x-session-id": "1"}),
    ],
)
def test_another_opening_tenant_or_session_is_another_conversation(other: RequestOpening) -> None:
    assert other.session != a_chat(SYSTEM, USER).session


def test_a_client_says_which_requests_are_one_session() -> None:
    for name in ("x-session-id", "x-claude-code-session-id"):
        sessions = {a_chat(each, headers={name: "7"}).session for each in (USER, LATER)}
        assert len(sessions) == 1
        assert sessions != {a_chat(USER, headers={name: "8"}).session}
        assert sessions != {a_chat(USER, headers={name: "7"}, tenant="team-b").session}


def test_prompts_of_token_ids_are_told_apart() -> None:
    sessions = {
        opening_of("/v1/completions", prompt=prompt).session
        for prompt in ([1, 2, 3], [1, 2, 4], [[1, 2], [3]])
    }
    assert len(sessions) == 3


def test_conversations_that_begin_with_different_images_are_told_apart() -> None:
    other = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}
    assert a_chat(user([IMAGE])).session != a_chat(user([other])).session


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "messages",
    [
        "null",
        "7",
        "{}",
        "[]",
        "[ ]",
        "[null]",
        '[{"role":7,"content":"Why?"}]',
        '[{"role":"user"}]',
        '[{"role":"user","content":7}]',
        '[{"role":"user","content":null}]',
        '[{"role":"user","content":{"text":"Why?"}}]',
        '[{"role":"user","content":["a",7]}]',
        '[{"role":"user","content":["a",null]}]',
        '[{"role":"user","content":["a",{"text":7}]}]',
        '[{"role":"user","content":["a",{"type":"x","text":{}}]}]',
        '[{"role":"user","content":[{"source":7,"text":"Why?"}]}]',
        '[{"role":"user","content":[{"text":' + deep(500) + "}]}]",
        '[{"role":"user","content":' + deep(500) + "}]",
        "[" + ",".join(['{"role":"system","content":"x"}'] * 5000) + "]",
    ],
)
def test_what_cannot_be_read_is_an_empty_text(messages: str) -> None:
    opening = opening_of_bytes(CHAT, b'{"model":"m","messages":%b}' % messages.encode())
    assert (opening.text, opening.media) == ("", False)
    assert len(opening.session) == 16


def test_bytes_that_are_no_utf_8_are_an_empty_text() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"a\xff"}]}'
    assert opening_of_bytes(CHAT, body).text == ""


@pytest.mark.parametrize("before", range(12))
@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600", "\n", "?"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_of_a_long_message_the_beginning_is_read(
    before: int, character: str, *, ascii_only: bool
) -> None:
    text = "a" * before + character * (12 * MAX_OPENING_CHARACTERS + 5)
    body = json.dumps({"model": "m", "messages": [user(text)]}, ensure_ascii=ascii_only)
    opening = opening_of_bytes(CHAT, body.encode())
    assert opening.text == text[:MAX_OPENING_CHARACTERS]


def test_of_many_parts_the_first_are_read() -> None:
    parts = [{"type": "text", "text": str(number)} for number in range(5000)] + [IMAGE]
    opening = a_chat(user(parts))
    assert opening.text == "\n".join(str(number) for number in range(256))
    assert not opening.media


def heavy_bodies(size: int) -> dict[str, bytes]:
    filled = b'{"model":"m","messages":[%b]}'
    text = b'{"role":"user","content":"%b"}'
    return {
        "text": filled % (text % (b"x" * size)),
        "escapes": filled % (text % (rb"\ud83d\ude00" * (size // 12))),
        "parts": filled
        % (b'{"role":"user","content":[%b]}' % b",".join([b'{"text":"a"}'] * (size // 13))),
        "messages": filled % b",".join([b'{"role":"system"}'] * (size // 18)),
        "no_utf_8": filled
        % (
            b'{"role":"user","content":[%b]}'
            % b",".join([b'{"text":"%b\xff%b"}' % (b"x" * 1_199_000, b"x" * 60_000)] * 6)
        ),
        "image": filled
        % (b'{"role":"user","content":[{"image_url":{"url":"data:%b"}}]}' % (b"A" * size)),
        "numbers": b'{"model":"m","messages":[%b]}' % b",".join([b"1"] * (size // 2)),
        "earlier": filled % (b'{"role":"system","content":"%b"},' % (b"x" * size) + text % b"Why?"),
    }


@pytest.mark.parametrize("kind", sorted(heavy_bodies(100)))
def test_a_large_body_takes_about_as_long_as_its_parsing(kind: str) -> None:
    body = heavy_bodies(8 * 2**20)[kind]
    decoder = PATHS[CHAT].decoder
    spent = []
    for _ in range(3):
        began = time.thread_time()
        fields = parse(decoder, body)
        parsed = time.thread_time()
        read_opening(fields, {}, "team-a")
        spent.append((time.thread_time() - parsed) / (parsed - began))
    assert min(spent) < 5
