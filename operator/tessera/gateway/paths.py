"""The paths of the gateway that reach an engine; everything else answers by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tessera.gateway.bodies import listed_fields as listed
from tessera.gateway.bodies import parsing
from tessera.gateway.http.sse import StreamFormat
from tessera.gateway.refusals import MESSAGES_FAILURE, RESPONSES_FAILURE

_OPENAI_STREAM = StreamFormat(
    ends=(b"[DONE]",),
    delta=b'"choices"',
    texts=(b'"content":', b'"text":', b'"reasoning_content":', b'"reasoning":', b'"arguments":'),
)
_RESPONSES_STREAM = StreamFormat(
    ends=(b"event: response.completed\n", b"event: response.incomplete\n"),
    delta=b".delta\n",
    texts=(b'"delta":',),
    preludes=(b"event: response.created\n", b"event: response.in_progress\n"),
    failures=(RESPONSES_FAILURE, b"event: error\n"),
    failure=RESPONSES_FAILURE,
)
_MESSAGES_STREAM = StreamFormat(
    ends=(b"event: message_stop\n",),
    delta=b"event: content_block_delta\n",
    texts=(b'"text":', b'"thinking":', b'"partial_json":'),
    preludes=(
        b"event: message_start\n",
        b"event: content_block_start\n",
        b"event: ping\n",
    ),
    failures=(MESSAGES_FAILURE,),
    failure=MESSAGES_FAILURE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathItem:
    """One path on which requests are relayed to an engine, always by POST."""

    path: str
    decoder: msgspec.json.Decoder[parsing.RequestFields]
    listed: msgspec.json.Decoder[parsing.RequestFields]
    """Takes only fields that pass to engines which several tenants may use."""
    stream: StreamFormat | None = None
    """None where an engine generates no tokens, but reads the prompt alone."""


def _path_item(
    path: str,
    body: type[parsing.RequestFields],
    others: Sequence[str],
    *,
    stream: StreamFormat | None = None,
) -> PathItem:
    return PathItem(
        path=path,
        decoder=msgspec.json.Decoder(body),
        listed=msgspec.json.Decoder(parsing.with_only(body, others)),
        stream=stream,
    )


PATHS: Mapping[str, PathItem] = {
    item.path: item
    for item in (
        _path_item("/v1/chat/completions", parsing.ChatFields, listed.CHAT, stream=_OPENAI_STREAM),
        _path_item(
            "/v1/completions", parsing.CompletionFields, listed.COMPLETIONS, stream=_OPENAI_STREAM
        ),
        _path_item(
            "/v1/responses", parsing.ResponsesFields, listed.RESPONSES, stream=_RESPONSES_STREAM
        ),
        _path_item(
            "/v1/messages", parsing.MessagesFields, listed.MESSAGES, stream=_MESSAGES_STREAM
        ),
        _path_item("/v1/messages/count_tokens", parsing.ConversationFields, listed.MESSAGES),
        _path_item("/v1/embeddings", parsing.EmbeddingFields, listed.EMBEDDINGS),
        _path_item("/tokenize", parsing.ConversationFields, listed.TOKENIZE),
        _path_item("/detokenize", parsing.RequestFields, listed.DETOKENIZE),
        _path_item("/pooling", parsing.EmbeddingFields, listed.POOLING),
        _path_item("/classify", parsing.InputFields, listed.CLASSIFY),
        _path_item("/rerank", parsing.RerankFields, listed.RERANK),
        _path_item("/v1/rerank", parsing.RerankFields, listed.RERANK),
        _path_item("/v2/rerank", parsing.RerankFields, listed.RERANK),
        _path_item("/score", parsing.ScoreFields, listed.SCORE),
        _path_item("/v1/score", parsing.ScoreFields, listed.SCORE),
    )
}

# Answered by the gateway itself.
OWN_PATHS = (
    "GET /healthz",
    "GET /readyz",
    "GET /v1/budget",
    "GET /v1/models",
    "GET /v1/models/{model}",
)


def failure_line(path: str) -> bytes:
    """Return the line before a failure in a stream, which says which protocol its clients speak."""
    item = PATHS.get(path)
    if item is not None and item.stream is not None:
        return item.stream.failure
    return MESSAGES_FAILURE if path.startswith("/v1/messages") else b""
