"""Which images and clips of a request an engine may fetch, wherever they are in the body."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from tessera.domain.gateway.directory import OfferedModel
from tessera.gateway.bodies.media import read_media
from tessera.gateway.bodies.parsing import parse_with_unlisted
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

CHATS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
EMBEDDINGS, POOLING, TOKENIZE = "/v1/embeddings", "/pooling", "/tokenize"
METADATA = "http://169.254.169.254/latest/meta-data"
LISTED = a_model(media_domains=("images.example.org", "cdn.example"))


def said(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def an_image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def a_block(url: Any) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


def a_result(url: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "a", "content": [a_block(url)]}


def an_output(url: Any) -> dict[str, Any]:
    part = {"type": "input_image", "image_url": url}
    return {"type": "function_call_output", "call_id": "a", "output": [part]}


def places(url: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return bodies that have a URL in each place where an engine fetches it."""
    image, text = an_image(url), {"type": "text", "text": "what is this?"}
    screenshot = {"type": "computer_screenshot", "image_url": url}
    return {
        "image": (CHATS, {"messages": said(text, image)}),
        "short image": (CHATS, {"messages": said({"image_url": url})}),
        "named image": (CHATS, {"messages": said({"type": "image_url", "image_url": url})}),
        "video": (CHATS, {"messages": said({"type": "video_url", "video_url": {"url": url}})}),
        "audio": (CHATS, {"messages": said({"type": "audio_url", "audio_url": {"url": url}})}),
        "input image": (CHATS, {"messages": said({"type": "input_image", "image_url": url})}),
        "tool's image": (CHATS, {"messages": [{"role": "tool", "content": [image]}]}),
        "block": (MESSAGES, {"messages": said(a_block(url))}),
        "result": (MESSAGES, {"messages": said(a_result(url))}),
        "system": (MESSAGES, {"system": [a_block(url)]}),
        "counted": ("/v1/messages/count_tokens", {"messages": said(a_block(url))}),
        "response": (RESPONSES, {"input": said({"type": "input_image", "image_url": url})}),
        "output": (RESPONSES, {"input": [an_output(url)]}),
        "screenshot": (RESPONSES, {"input": [{"output": screenshot}]}),
        "embedded": (EMBEDDINGS, {"messages": said(image)}),
        "embedded input": (EMBEDDINGS, {"input": said(image)}),
        "embedded batch": (EMBEDDINGS, {"messages": [said(text), said(image)]}),
        "pooled": (POOLING, {"messages": said(image)}),
        "tokenized": (TOKENIZE, {"messages": said(image)}),
        "scored": ("/score", {"text_1": "a", "text_2": {"content": [image]}}),
        "scored query": ("/v1/score", {"queries": [{"content": [image]}], "items": ["a", "b"]}),
        "scored beside": (
            "/v1/score",
            {"data_1": {"content": [image]}, "text_1": ["a", "b"], "text_2": ["c", "d"]},
        ),
        "ranked": ("/rerank", {"query": "a", "documents": ["b", {"content": [image]}]}),
    }


PLACES = sorted(places(""))


def check(path: str, body: bytes, model: OfferedModel = LISTED) -> None:
    """Do what the gateway does with a body before it is admitted."""
    item = PATHS[path]
    fields, _ = parse_with_unlisted(item.decoder, item.listed, body)
    if fields.prompt_size(body).media_tokens:
        read_media(fields.media, model)


def refusal(path: str, fields: dict[str, Any], model: OfferedModel = LISTED) -> RequestError | None:
    try:
        check(path, json.dumps({"model": "chat", **fields}).encode(), model)
    except RequestError as error:
        return error
    return None


@pytest.mark.parametrize("place", PLACES)
def test_a_url_is_fetched_from_listed_hosts_alone_wherever_it_is(place: str) -> None:
    for url in (METADATA, "https://example.org/a.png", "file:///etc/passwd", "https://evil"):
        path, fields = places(url)[place]
        error = refusal(path, fields)
        assert error is not None, url
        assert error.status == 400
        assert error.param in ("image_url", "video_url", "audio_url", "source")
        assert url in error.message
        assert "fetches media from images.example.org, cdn.example alone" in error.message
        assert "spec.engine.allowedMediaDomains" in error.message
    data = "data:image/png;base64," + "A" * 100_000
    for url in (data, "DATA:,a", "https://images.example.org/a?b#c", "HTTP://CDN.example:8080", ""):
        path, fields = places(url)[place]
        assert refusal(path, fields) is None, url[:50]


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org@evil.example/",
        "https://images.example.org:80@evil.example/",
        "https://evil.example#images.example.org",
        "https://evil.example/images.example.org",
        "https://evil.example\\@images.example.org/",
        "https://images.example.org\\@evil.example/",
        "https://images.example.org.evil.example/",
        "https://a.images.example.org/",
        "https://images.example.org./",
        "https://images.example.org%2e/",
        "https://images.example.org\t/",
        "https://images.example.org\n.evil.example/",
        " https://images.example.org/",
        "https:/images.example.org/",
        "https:images.example.org",
        "//images.example.org/a",
        "images.example.org/a",
        "https://\u0131mages.example.org/",
        "https://images\u3002example\u3002org/",
        "https://[::ffff:169.254.169.254]/",
        "https://2852039166/",
        "ftp://images.example.org/a",
        "file://images.example.org/etc/passwd",
        "httpx://images.example.org/",
        " data:image/png;base64,AAAA",
        "dat\na:,",
        "https://images.example.org/" + "a" * 10_000,
    ],
)
def test_a_url_that_two_readers_may_read_in_two_ways_is_refused(url: str) -> None:
    assert refusal(CHATS, {"messages": said(an_image(url))}) is not None


PIECES = ("https://", "images.example.org", "evil", "@", "\\", "/", "#", "?", ":", "80")


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=8).map("".join))
def test_the_library_of_the_engine_reads_the_same_host(url: str) -> None:
    """It compares the host that urllib3 reads, and connects to it."""
    if refusal(CHATS, {"messages": said(an_image(url))}) is None and url:
        try:
            host = parse_url(url).host
        except LocationParseError:
            host = None
        assert host in (*LISTED.media_domains, None)


@pytest.mark.parametrize("escaped", ["image_ur\\u006c", "\\u0069mage_url", "image\\u005furl"])
def test_an_escape_hides_no_url(escaped: str) -> None:
    body = json.dumps({"model": "chat", "messages": said({"image_url": "https://evil"})})
    for hidden in (
        body.replace("image_url", escaped),
        body.replace("https", "htt\\u0070s"),
        body.replace('"content"', '"c\\u006fntent"'),
        body.replace('"messages"', '"messa\\u0067es"'),
        body.replace('"messages"', '"messages":[],"messages"'),
        body.replace(": ", ":" + " " * 100),
    ):
        with pytest.raises(RequestError, match="no `data:` URL"):
            check(CHATS, hidden.encode())


def test_no_host_is_allowed_where_none_is_listed() -> None:
    error = refusal(CHATS, {"messages": said(an_image("https://a"))}, a_model())
    assert error is not None
    assert "fetches media from no host alone" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        # What a tool is called with, and what it is.
        {"messages": said({"type": "tool_use", "input": {"image_url": "https://a", "url": "b"}})},
        {"messages": said({"type": "text", "text": '{"image_url": "https://a"}'})},
        {
            "messages": [{"role": "assistant", "content": None, "tool_calls": ["image_url: a"]}],
            "tools": [{"function": {"parameters": {"image_url": {"url": "https://a"}}}}],
            "metadata": {"image_url": "https://a"},
        },
        {"messages": said({"type": "text", "text": "a", "image_url": None})},
        {"messages": said({"input_audio": {"data": "UklGRg==", "format": "wav"}})},
        {"messages": said(an_image(7), an_image(None), {"image_url": {}}, {"image_url": []})},
        {"messages": [*said(an_image("data:,a")), {"role": "user", "content": "https://a"}]},
    ],
)
def test_what_no_engine_fetches_passes(fields: dict[str, Any]) -> None:
    for path in (CHATS, MESSAGES):
        assert refusal(path, fields) is None


@pytest.mark.parametrize("name", ["uuid", "image_embeds", "video_embeds", "audio_embeds"])
def test_on_shared_engines_media_have_no_names_and_are_no_tensors(name: str) -> None:
    """A name may be that of another tenant's image, which an engine would take for this one."""
    for part in ({**an_image("data:,a"), name: "x"}, {"image_url": None, name: "x"}):
        for shared in ({"public": True}, {"tenants": frozenset({"team-b"})}):
            error = refusal(CHATS, {"messages": said(part)}, a_model(**shared))
            assert error is not None
            assert error.param == name
        assert refusal(CHATS, {"messages": said(part)}, a_model()) is None
    part = {**an_image("data:,a"), name: None}
    assert refusal(CHATS, {"messages": said(part)}, a_model(public=True)) is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "prompt_embeds", "data": "AAAA"},
        {"data": "AAAA", "prompt_embeds": None},
        {"type": "text", "text": "a", "prompt_embeds": "AAAA"},
    ],
)
@pytest.mark.parametrize("escaped", ["prompt_embeds", "prompt\\u005fembeds"])
def test_a_prompt_in_tensors_reaches_no_shared_engine(part: dict[str, Any], escaped: str) -> None:
    places = {CHATS: "messages", RESPONSES: "input", EMBEDDINGS: "messages", TOKENIZE: "messages"}
    for path, field in places.items():
        body = json.dumps({"model": "chat", field: said(part)}).replace("prompt_embeds", escaped)
        check(path, body.encode(), a_model())
        with pytest.raises(RequestError, match="several tenants") as refused:
            check(path, body.encode(), a_model(public=True))
        assert refused.value.param == "prompt_embeds"
    text = said({"type": "text", "text": "prompt_embeds"})
    assert refusal(CHATS, {"messages": text}, a_model(public=True)) is None


@pytest.mark.parametrize(
    "messages",
    [
        [[[[[[[[[[[[said(an_image("data:,a"))]]]]]]]]]]]],
        [{"content": {"content": {"content": {"content": {"content": {"content": said()}}}}}}] * 3,
        [*said(an_image("data:,a")), *[{"role": "user", "content": "a"}] * 2048],
        [said(an_image("data:,a")), *[[{"content": "a"}] * 1000] * 20],
    ],
)
def test_more_than_a_conversation_is_not_looked_through(messages: Any) -> None:
    body = {"messages": [*messages, {"content": [an_image("data:,a")]}]}
    error = refusal(EMBEDDINGS, body)
    assert error is not None
    assert "the body" in error.message


LONG = [{"role": "user", "content": [an_image("data:,a"), {"type": "text", "text": "b"}]}] * 2000


def test_a_long_conversation_with_many_images_passes() -> None:
    assert refusal(CHATS, {"messages": LONG}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("https://evil"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "image_url", "url", "source", "x"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_conversation_is_taken_or_refused(messages: Any) -> None:
    """And if it is taken, no part of it is an image elsewhere."""
    error = refusal(CHATS, {"messages": messages})
    assert error is not None or not _fetched(messages)


def _fetched(messages: Any) -> bool:
    """Return whether an engine that reads only well-formed messages would fetch something."""
    for message in messages if isinstance(messages, list) else []:
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else []:
            image = part.get("image_url") if isinstance(part, dict) else None
            url = image.get("url") if isinstance(image, dict) else image
            if isinstance(url, str) and url:
                return True
    return False


@pytest.mark.anyio
@pytest.mark.parametrize("sharing", [{}, {"public": True}])
async def test_no_engine_is_asked_for_media_of_other_hosts(sharing: dict[str, Any]) -> None:
    async def script(call: Any) -> None:
        await call.whole(COMPLETION)

    async with ScriptedEngine(script) as engine:
        model = a_model(a_replica(engine.address), media_domains=("cdn.example",), **sharing)
        async with a_gateway(a_directory(model)) as gateway:
            answer = await gateway.post({**CHAT, "messages": said(an_image(METADATA))})
            assert (answer.status, answer.error["param"]) == (400, "image_url")
            assert (
                "InferenceService/team-a/chat fetches media from cdn.example"
                in answer.error["message"]
            )
            assert not engine.calls
            for url in ("data:image/png;base64,AAAA", "https://cdn.example/a.png"):
                messages = said(an_image(url))
                assert (await gateway.post({**CHAT, "messages": messages})).status == 200
                assert engine.calls.pop().json["messages"] == messages
