"""What clients ask for on each path, and what engines answer: whole, and event by event."""

import json
from collections.abc import Mapping
from typing import Any

from tests.gateway.harness import CHAT, COMPLETION, DONE, END, MODEL, ROLE, USAGE, a_delta, event

Json = dict[str, Any]
_PAIRS = {"query": "a", "documents": ["b", "c"]}
_SCORES = {"text_1": "a", "text_2": ["b", "c"]}
_USAGE = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
_RANKED = {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 9}}
BODIES: Mapping[str, Json] = {
    "/v1/chat/completions": {**CHAT, "max_tokens": 20},
    "/v1/completions": {"model": MODEL, "prompt": "a tile", "max_tokens": 20},
    "/v1/responses": {"model": MODEL, "input": "hi", "max_output_tokens": 20},
    "/v1/messages": {**CHAT, "max_tokens": 20},
    "/v1/messages/count_tokens": {**CHAT},
    "/v1/embeddings": {"model": MODEL, "input": ["a", "b"]},
    "/tokenize": {**CHAT},
    "/detokenize": {"model": MODEL, "tokens": [1, 2]},
    "/pooling": {"model": MODEL, "input": "a"},
    "/classify": {"model": MODEL, "input": "a"},
    "/rerank": {"model": MODEL, **_PAIRS},
    "/v1/rerank": {"model": MODEL, **_PAIRS},
    "/v2/rerank": {"model": MODEL, **_PAIRS},
    "/score": {"model": MODEL, **_SCORES},
    "/v1/score": {"model": MODEL, **_SCORES},
}
# By path; where several are alike, by the last part of its path.
_ANSWERS: Mapping[str, Json] = {
    "/v1/chat/completions": COMPLETION,
    "/v1/completions": {
        "id": "cmpl-0",
        "choices": [{"index": 0, "text": " word", "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    },
    "/v1/responses": {
        "id": "resp-0",
        "status": "completed",
        "usage": {
            "input_tokens": 7,
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 1},
        },
    },
    "/v1/messages": {
        "id": "msg-0",
        "content": [{"type": "text", "text": " word"}],
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 6},
    },
    "/v1/messages/count_tokens": {"input_tokens": 7},
    "/tokenize": {"count": 3, "tokens": [1, 2, 3], "max_model_len": 99},
    "/detokenize": {"prompt": "a tile"},
    "rerank": _RANKED,
    "score": {"data": [{"index": 0, "score": 0.5}], **_USAGE},
    "embeddings": {"data": [{"index": 0, "embedding": [0.5]}], **_USAGE},
    "pooling": {"data": [{"index": 0, "data": [0.5]}], **_USAGE},
    "classify": {"data": [{"index": 0, "label": "tile"}], **_USAGE},
}
_WORDS = (" word", " two", " three", " four")


def answer_of(path: str) -> Json:
    """Return a whole answer."""
    return _ANSWERS.get(path) or _ANSWERS[path.rpartition("/")[2]]


def _named(name: str, **fields: Any) -> bytes:
    data = json.dumps({"type": name, **fields}, separators=(",", ":"))
    return f"event: {name}\ndata: {data}\n\n".encode()


def _piece(text: str, **changes: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None, **changes}
    return event({"id": "cmpl-0", "created": 1, "model": MODEL, "choices": [choice]})


# Before the first token, with tokens, and after the last one.
_STREAMS: Mapping[str, tuple[list[bytes], list[bytes], list[bytes]]] = {
    "/v1/chat/completions": ([ROLE], [a_delta(word) for word in _WORDS], [END, USAGE, DONE]),
    "/v1/completions": (
        [],
        [_piece(word) for word in _WORDS],
        [_piece("", finish_reason="length"), USAGE, DONE],
    ),
    "/v1/responses": (
        [_named("response.created", response={"id": "resp-0"}), _named("response.in_progress")],
        [_named("response.output_text.delta", delta=word) for word in _WORDS],
        [_named("response.completed", response=_ANSWERS["/v1/responses"])],
    ),
    "/v1/messages": (
        [
            _named("message_start", message={"usage": {"input_tokens": 5, "output_tokens": 1}}),
            _named("content_block_start", index=0),
        ],
        [_named("content_block_delta", delta={"text": word}) for word in _WORDS],
        [
            _named("content_block_stop", index=0),
            _named("message_delta", usage={"output_tokens": 6}),
            _named("message_stop"),
        ],
    ),
}
STREAMING = tuple(_STREAMS)


def stream_of(path: str) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return the events of a stream: before its first token, with tokens, and after the last."""
    return _STREAMS[path]


def rest_of(path: str) -> list[bytes]:
    """Return the events of an engine that goes on with a stream of which two words came."""
    before, _, after = _STREAMS[path]
    if path == "/v1/completions":
        return [*before, _piece(" three"), *after]
    return [*before, _STREAMS[path][1][2], *after]
