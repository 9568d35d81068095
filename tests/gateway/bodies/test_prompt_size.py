"""What requests may give an engine to read: the golden examples, and what hides in a body."""

import base64
import json
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ImageTokens
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import TenantLimits
from tessera.gateway.bodies.json_values import MAX_TEXTS
from tessera.gateway.bodies.media import read_media
from tessera.gateway.bodies.parsing import parse
from tessera.gateway.bodies.prompt_size import LARGEST_CONTEXT, PromptSize, of_conversation
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError
from tests.domain.model.test_media_tokens import mp4, png, url, wave
from tests.gateway.harness import (
    COMPLETION,
    TENANT,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

CONTEXT = 8192
QUERY = "q" * 6000
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
CLIP = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}


def size_of(path: str, body: bytes) -> PromptSize:
    return parse(PATHS[path].decoder, body).prompt_size(body)


def whole_size(path: str, body: bytes, image: ImageTokens | None = None) -> PromptSize:
    """Return the size of a body as it is chosen by, with its images and clips."""
    fields = parse(PATHS[path].decoder, body)
    size = fields.prompt_size(body)
    model = a_model(media_domains=("example.org",), image=image)
    return fields.size_with(size, read_media(fields.media, model))


def estimate(path: str, context: int | None = CONTEXT, **fields: Any) -> int:
    return size_of(path, json.dumps({"model": "m", **fields}).encode()).estimate(context)


def a_chat(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


# A list of JSON has two bytes between items and two around it, a text two around it.
@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/v1/completions", {"prompt": "a" * 298}, 101),
        ("/v1/completions", {"prompt": "a" * 298, "n": 8, "best_of": 16}, 101),
        ("/v1/completions", {"prompt": ["a" * 596, "b" * 596]}, 402),
        ("/v1/completions", {"prompt": ["a" * 60_000, "b", "c"]}, 20_006),
        ("/v1/completions", {"prompt": list(range(100))}, 101),
        ("/v1/completions", {"prompt": [[1, 2], [3], [4, 5]]}, 8),
        ("/v1/embeddings", {"input": ["x" * 3000] * 100}, 100 * 1001 + 241),
        ("/v1/embeddings", {"input": ["x" * 30_000] * 10}, 10 * CONTEXT),
        ("/pooling", {"input": [[7] * 300] * 4}, 4 * 300 + 12),
        ("/v1/rerank", {"query": QUERY, "documents": ["d"] * 1000}, 1000 * 2000 + 3333),
        ("/rerank", {"query": "q" * 90_000, "documents": ["d"] * 1000}, 1000 * CONTEXT),
        ("/v2/rerank", {"query": "q", "documents": [{"text": "d, {e}"}] * 10}, 86),
        ("/v1/score", {"text_1": QUERY, "text_2": ["d"] * 100}, 100 * 2000 + 333),
        ("/score", {"text_1": [QUERY] * 4, "text_2": [QUERY] * 4}, 16_017),
        ("/score", {"queries": QUERY, "items": ["d"] * 100}, 100 * 2000 + 333),
        ("/score", {"data_1": QUERY, "data_2": {"content": [IMAGE] * 3}}, 26_378),
    ],
)
def test_every_text_of_a_request_counts(path: str, fields: dict[str, Any], expected: int) -> None:
    assert estimate(path, **fields) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
@pytest.mark.parametrize("given", ["x", ["x"], [1, 2], [], None, {"a": "x"}])
@pytest.mark.parametrize("other", ["messages", "data"])
def test_a_conversation_beside_inputs_counts(path: str, given: Any, other: str) -> None:
    both = {"input": given, other: a_chat({"type": "text", "text": "word " * 3000}, IMAGE)}
    assert 5000 + 4096 <= estimate(path, None, **both) < 5100 + 4096
    assert estimate(path, **both) == CONTEXT


def test_what_is_read_with_each_text_counts_with_each() -> None:
    for path, fields, texts in (
        ("/v1/rerank", {"query": "q", "documents": ["d"] * 50, "instruction": "i" * 298}, 50),
        ("/score", {"text_1": "q", "text_2": ["d"] * 50, "instruction": "i" * 298}, 50),
        ("/v1/completions", {"prompt": ["p"] * 50, "suffix": "s" * 298}, 50),
    ):
        assert texts * 100 <= estimate(path, None, **fields) < texts * 105


@pytest.mark.parametrize(
    ("messages", "media_tokens"),
    [
        (a_chat({"type": "text", "text": '"image_url": {"input_audio": 1}'}), 0),
        (a_chat(IMAGE), 4096),
        (a_chat({"image_url": "https://example.org/a.png"}), 4096),
        (a_chat(*[IMAGE] * 40), 40 * 4096),
        (a_chat({"type": "input_image", "image_url": "https://example.org/a.png"}), 4096),
        (a_chat({"type": "image", "source": {"type": "url", "url": "https://a"}}), 4096),
        (a_chat(CLIP, {"type": "video_url", "video_url": {"url": "https://a"}}), 2 * 32_768),
    ],
)
def test_images_and_clips_count_by_item_up_to_the_context(messages: Any, media_tokens: int) -> None:
    for path, field in (
        ("/v1/chat/completions", "messages"),
        ("/v1/messages", "messages"),
        ("/v1/responses", "input"),
    ):
        body = json.dumps({"model": "m", field: messages}).encode()
        for text in (body, body.replace(b"mage_url", b"m\\u0061ge_url")):
            size = size_of(path, text)
            assert size.media_tokens == media_tokens
            assert size.estimate(None) == len(text) // 3 + 1 + media_tokens
            assert size.estimate(32) == 32


@pytest.mark.parametrize(
    ("path", "fields", "param", "text"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query", "is required"),
        ("/v1/rerank", {"query": "a"}, "documents", "is required"),
        ("/score", {"text_1": "a", "unknown": ["b"]}, "text_2", "is required"),
        ("/v1/rerank", {"query": "a", "documents": ["d"] * 2049}, "documents", "at most 2048"),
        ("/score", {"text_1": "a", "text_2": {"content": [{}] * 2049}}, "text_2", "at most 2048"),
        ("/v1/embeddings", {"input": ["d"] * 20_000}, "input", "at most 2048 texts"),
        ("/v1/embeddings", {"input": ["d", 1]}, "input", "list of tokens"),
        ("/v1/embeddings", {"input": [[[[[[["d"]]]]]]]}, "input", "list of tokens"),
    ],
)
def test_what_has_no_bound_is_refused(
    path: str, fields: dict[str, Any], param: str, text: str
) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        estimate(path, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


DOCUMENTS = st.lists(
    st.text()
    | st.dictionaries(st.text(), st.text() | st.lists(st.dictionaries(st.text(), st.text()))),
    min_size=1,
)


@given(DOCUMENTS, st.none() | st.integers(0, 2), st.booleans())
def test_documents_are_counted_however_they_are_written(
    documents: list[Any], indent: int | None, ascii_only: bool
) -> None:
    fields = {"model": "m", "query": "q", "documents": documents}
    body = json.dumps(fields, indent=indent, ensure_ascii=ascii_only).encode()
    assert size_of("/rerank", body).texts == len(documents)


@pytest.mark.parametrize("item", [b"1,", b'"a",', b'{"a":1},', b"[1],"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions"])
def test_items_of_lists_take_no_memory_of_their_own(path: str, item: bytes) -> None:
    field = b"input" if path == "/v1/embeddings" else b"prompt"
    body = b'{"model":"m","%b":[%b1]}' % (field, item * (2_000_000 // len(item)))
    tracemalloc.start()
    try:
        size_of(path, body)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017 - a list that is short enough is not refused
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * len(body)


@pytest.mark.anyio
async def test_more_choices_than_a_limit_has_tokens_are_refused() -> None:
    prompts = {"model": "chat", "prompt": ["a"] * 40, "n": 4, "max_tokens": 64}
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        model = a_model(a_replica(engine.address), limits=RateLimitsSpec(max_output_tokens=100))
        async with a_gateway(a_directory(model)) as gateway:
            answer = await gateway.post(prompts, "/v1/completions")
            assert (answer.status, answer.error["code"]) == (400, "too_many_choices")
            assert "limit 100 output tokens, needed 160" in answer.error["message"]
            assert not engine.calls
            fitting = {**prompts, "prompt": ["a"] * 10}
            assert (await gateway.post(fitting, "/v1/completions")).status == 200
            assert engine.calls[0].json["max_tokens"] == 2


@pytest.mark.anyio
async def test_a_limit_counts_the_query_of_each_document() -> None:
    body = {"model": "chat", "query": "q" * 3000, "documents": ["d"] * 100}
    async with ScriptedEngine(lambda call: call.whole({"usage": {"prompt_tokens": 100_000}})) as (
        engine
    ):
        for amount, status in ((200_000, 200), (90_000, 400)):
            rate = RateLimitsSpec(input_tokens=PeriodLimits(per_day=amount))
            model = a_model(a_replica(engine.address), max_model_len=CONTEXT, limits=rate)
            async with a_gateway(a_directory(model)) as gateway:
                assert (await gateway.post(body, "/v1/rerank")).status == status


DATA = base64.b64encode(os.urandom(300_000)).decode()
PICTURE = f"data:image/png;base64,{DATA}"
SMALL = url(png(640, 480)).decode()
SMALL_TOKENS = 1200
SOUND = base64.b64encode(wave(60)).decode()


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": PICTURE}}, 4096),
        ({"type": "image_url", "image_url": PICTURE}, 4096),
        ({"image_url": PICTURE}, 4096),
        ({"type": "image_url", "image_url": {"url": SMALL}}, SMALL_TOKENS),
        ({"type": "input_image", "image_url": SMALL}, SMALL_TOKENS),
        ({"type": "image", "source": {"type": "base64", "data": DATA}}, 4096),
        ({"type": "image", "source": {"type": "base64", "data": SMALL}}, SMALL_TOKENS),
        ({"type": "document", "source": {"type": "base64", "data": DATA}}, 4096),
        (
            {
                "type": "tool_result",
                "content": [{"type": "image", "source": {"type": "base64", "data": DATA}}],
            },
            4096,
        ),
        ({"type": "function_call_output", "output": [{"image_url": PICTURE}]}, 4096),
        ({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}, 1500),
        ({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{SOUND}"}}, 1500),
        ({"type": "video_url", "video_url": {"url": url(mp4(10)).decode()}}, 7680),
        ({"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{DATA}"}}, 11_520),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}}, 4096),
        ({"type": "input_file", "file_data": PICTURE}, 4096),
        ({"type": "image_embeds", "image_embeds": DATA}, 4096),
        ({"type": "image_embeds", "image_embeds": {"image_embeds": DATA}}, 2 * 4096),
    ],
)
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", lambda part: {"messages": a_chat(part)}),
        ("/v1/messages", lambda part: {"messages": a_chat(part)}),
        ("/v1/messages/count_tokens", lambda part: {"messages": a_chat(part)}),
        ("/tokenize", lambda part: {"messages": a_chat(part)}),
        ("/v1/responses", lambda part: {"input": a_chat(part)}),
        ("/v1/embeddings", lambda part: {"messages": a_chat(part)}),
        ("/pooling", lambda part: {"input": "", "messages": a_chat(part)}),
        ("/v1/rerank", lambda part: {"query": "q", "documents": {"content": [part]}}),
        ("/v1/score", lambda part: {"text_1": {"content": [part]}, "text_2": "d"}),
    ],
)
def test_no_byte_of_an_image_or_a_clip_is_text(
    part: dict[str, Any], tokens: int, path: str, fields: Callable[[Any], dict[str, Any]]
) -> None:
    body = json.dumps({"model": "chat", **fields(part)}).encode()
    size = whole_size(path, body)
    assert tokens <= size.estimate(None) <= 1.02 * tokens + 150 * size.texts
    # An engine may count far more of it than its header says.
    assert size.bound(LARGEST_CONTEXT) >= 4 * 4096


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": PICTURE},
        {"type": "text", "text": "x", "refusal": DATA},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": DATA}},
        {"type": "tool_use", "input": {"image_url": {"url": PICTURE}}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "text": DATA}},
    ],
)
def test_a_text_that_looks_like_an_image_counts_as_text(part: dict[str, Any]) -> None:
    for path in ("/v1/chat/completions", "/v1/messages"):
        body = json.dumps({"model": "chat", "messages": a_chat(part)}).encode()
        assert whole_size(path, body).estimate(None) >= len(DATA) // 3


def test_several_images_count_each_by_itself() -> None:
    parts = [{"image_url": SMALL}, {"image_url": PICTURE}, IMAGE, {"text": "word " * 600}]
    body = json.dumps({"model": "chat", "messages": a_chat(*parts)}).encode()
    assert whole_size("/v1/chat/completions", body).estimate(None) == pytest.approx(
        SMALL_TOKENS + 2 * 4096 + 1000, abs=100
    )


PHOTO = url(png(4000, 3000)).decode()
QWEN, GEMMA = ImageTokens(max_tokens=16_384, pixels_per_side=28), ImageTokens(max_tokens=256)


@pytest.mark.parametrize(
    ("image", "photo", "unknown"),
    [(None, 4096, 4096), (QWEN, 143 * 108, 4096), (GEMMA, 256, 256)],
    ids=["none", "qwen", "gemma"],
)
def test_an_image_counts_by_what_its_model_says(
    image: ImageTokens | None, photo: int, unknown: int
) -> None:
    remote = "https://example.org/a.png"
    for value, tokens in ((PHOTO, photo), (PICTURE, unknown), (remote, unknown)):
        for part in (
            {"type": "image_url", "image_url": {"url": value}},
            {"type": "input_image", "image_url": value},
            {"type": "image", "source": {"type": "url", "url": value}},
        ):
            several = a_chat(*[part] * 3)
            body = json.dumps({"model": "chat", "messages": several}).encode()
            size = whole_size("/v1/chat/completions", body, image)
            assert 3 * tokens <= size.estimate(None) <= 3 * tokens + 200
            # Options of an engine may let it count more than the files say.
            assert size.bound(LARGEST_CONTEXT) >= 4 * 3 * 4096
            documents = {"model": "chat", "query": "q", "documents": {"content": [part]}}
            score = whole_size("/v1/rerank", json.dumps(documents).encode(), image)
            assert tokens <= score.estimate(None) <= tokens + 200


def test_clips_and_other_urls_count_as_before() -> None:
    for clip in (CLIP, {"type": "video_url", "video_url": {"url": "https://example.org/a"}}):
        body = json.dumps({"model": "chat", "messages": a_chat(clip)}).encode()
        sizes = [whole_size("/v1/chat/completions", body, image) for image in (None, QWEN, GEMMA)]
        assert len(set(sizes)) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("image", "refused", "fitting"),
    [(None, 4000, 4600), (QWEN, 15_000, 16_000), (GEMMA, 250, 800)],
    ids=["none", "qwen", "gemma"],
)
async def test_a_limit_counts_a_photo_by_what_its_model_says(
    image: ImageTokens | None, refused: int, fitting: int
) -> None:
    body = {"model": "chat", "max_tokens": 16, "messages": a_chat({"image_url": PHOTO})}
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        for most, status in ((refused, 400), (fitting, 200)):
            limits = RateLimitsSpec(max_context_tokens=most)
            model = a_model(a_replica(engine.address), image=image, limits=limits)
            async with a_gateway(a_directory(model)) as gateway:
                answer = await gateway.post(body)
                assert answer.status == status, answer.error
        assert len(engine.calls) == 1


def test_two_photos_differ_in_the_prompt_and_count_as_their_tokens() -> None:
    def text_of(*pictures: str) -> tuple[bytes, int]:
        parts = [{"type": "text", "text": "a" * 3000}, *({"image_url": each} for each in pictures)]
        body = json.dumps({"model": "chat", "messages": a_chat(*parts), "tools": []}).encode()
        fields = parse(PATHS["/v1/chat/completions"].decoder, body)
        return fields.prompt_text(read_media(fields.media, a_model()))

    other = f"data:image/png;base64,{base64.b64encode(os.urandom(300_000)).decode()}"
    (first, size), (second, _), (both, of_both) = map(
        lambda pictures: text_of(*pictures), ((PICTURE,), (other,), (PICTURE, other))
    )
    assert len(first) == size == pytest.approx(3 * 4096 + 3000, abs=150)
    assert len(first) == len(second)
    assert first != second
    assert first[:3000] == second[:3000]
    assert both[: size - 10] == first[: size - 10]
    assert of_both == pytest.approx(6 * 4096 + 3000, abs=200)


@pytest.mark.anyio
@pytest.mark.parametrize("context", [131_072, 32_768])
@pytest.mark.parametrize(
    "limits",
    [
        RateLimitsSpec(total_tokens=PeriodLimits(per_minute=50_000)),
        RateLimitsSpec(input_tokens=PeriodLimits(per_minute=30_000)),
        RateLimitsSpec(max_context_tokens=24_000),
        RateLimitsSpec(),
    ],
    ids=["total", "input", "context", "none"],
)
async def test_a_photo_fits_the_limits_of_a_tenant(context: int, limits: RateLimitsSpec) -> None:
    photo = f"data:image/png;base64,{base64.b64encode(os.urandom(1_400_000)).decode()}"
    body = {"model": "chat", "max_tokens": 2000, "messages": a_chat({"image_url": photo})}
    usage = {"prompt_tokens": 1049, "completion_tokens": 59, "total_tokens": 1108}
    async with ScriptedEngine(lambda call: call.whole({**COMPLETION, "usage": usage})) as engine:
        tenant = TenantLimits(name=TENANT, namespaces=(TENANT,), limits=limits)
        model = a_model(a_replica(engine.address), max_model_len=context)
        async with a_gateway(a_directory(model, tenants={TENANT: tenant})) as gateway:
            answer = await gateway.post(body)
            assert answer.status == 200, answer.error
            record = await gateway.record()
            assert (record.input_tokens, record.output_tokens) == (1049, 59)
        # The answer keeps all the room that its client asked for.
        assert engine.calls[0].json["max_tokens"] == 2000
        assert engine.calls[0].json["messages"] == body["messages"]


def test_the_most_texts_are_taken() -> None:
    assert estimate("/v1/embeddings", None, input=["a"] * MAX_TEXTS) >= MAX_TEXTS


@pytest.mark.parametrize("text", ["word", "größer", "поезд", "夜班火车", "रात की गाड़ी"])
def test_escapes_count_as_their_characters(text: str) -> None:
    plain, escaped = (
        of_conversation(json.dumps(text * 1000, ensure_ascii=escaped).encode())
        for escaped in (False, True)
    )
    assert plain.text_bytes is not None
    assert escaped.text_bytes == pytest.approx(plain.text_bytes, rel=0.01)
    assert escaped.estimate(None) >= plain.estimate(None)
