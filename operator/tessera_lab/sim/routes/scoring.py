"""Rerank, score, classify and pooling: the other routes of an engine with `--runner pooling`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tessera_lab.sim.bodies import PoolingBody, read_body
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.encoders import Envelope, TokenSpan
from tessera_lab.sim.errors import bad_request
from tessera_lab.sim.generation_spec import GenerationSpec
from tessera_lab.sim.usage import Timing, TokenUsage

# Between the texts of a pair, as a cross-encoder reads them.
_SEPARATOR = " </s> "
_LABELS = ("LABEL_0", "LABEL_1")

Results = Callable[[Sequence[TokenSpan]], dict[str, Any]]


class RerankBody(PoolingBody):
    """`/rerank`."""

    query: str
    documents: list[str]
    top_n: int = 0


class ScoreBody(PoolingBody):
    """`/score`."""

    text_1: str | list[str]
    text_2: str | list[str]


class TextsBody(PoolingBody):
    """`/classify` and `/pooling`."""

    input: str | list[int] | list[str] | list[list[int]]


def scoring_routes(dispatcher: GenerationDispatcher) -> list[web.RouteDef]:
    """Return the routes of scores: texts with more words in common score higher."""

    async def respond(
        request: web.Request, body: PoolingBody, texts: Any, prefix: str, results: Results
    ) -> web.Response:
        def encoder(envelope: Envelope, _: GenerationSpec) -> PooledEncoder:
            return PooledEncoder(envelope, results)

        return await dispatcher.respond_whole(
            request, dispatcher.spec(body.generation(texts)), prefix, encoder
        )

    async def rerank(request: web.Request) -> web.Response:
        body = await read_body(RerankBody, request)
        pairs = [f"{body.query}{_SEPARATOR}{document}" for document in body.documents]

        def results(spans: Sequence[TokenSpan]) -> dict[str, Any]:
            scores = [_score(span.sample.prompt.text) for span in spans]
            order = sorted(range(len(scores)), key=lambda index: -scores[index])
            ranked = [
                {
                    "index": index,
                    "document": {"text": body.documents[index], "multi_modal": None},
                    "relevance_score": scores[index],
                }
                for index in order
            ]
            return {"results": ranked[: body.top_n or len(ranked)]}

        return await respond(request, body, pairs, "rerank", results)

    async def score(request: web.Request) -> web.Response:
        body = await read_body(ScoreBody, request)
        queries, documents = (
            [text] if isinstance(text, str) else text for text in (body.text_1, body.text_2)
        )
        if len(queries) not in (1, len(documents)):
            raise bad_request("Input lengths must be either 1:1, 1:N or N:N")
        pairs = [
            f"{query}{_SEPARATOR}{document}"
            for query, document in zip(
                queries * (len(documents) if len(queries) == 1 else 1), documents, strict=True
            )
        ]
        return await respond(
            request, body, pairs, "score", lambda spans: _rows("score", spans, "score", _score)
        )

    async def classify(request: web.Request) -> web.Response:
        body = await read_body(TextsBody, request)
        return await respond(request, body, body.input, "classify", _classes)

    async def pool(request: web.Request) -> web.Response:
        body = await read_body(TextsBody, request)
        return await respond(
            request, body, body.input, "pool", lambda spans: _rows("pooling", spans, "data", _token)
        )

    return [
        *(web.post(path, rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
        *(web.post(path, score) for path in ("/score", "/v1/score")),
        web.post("/classify", classify),
        web.post("/pooling", pool),
    ]


@dataclass(frozen=True, slots=True)
class PooledEncoder:
    """A response with results of each text and the tokens of all of them."""

    envelope: Envelope
    results: Results

    def whole(
        self,
        spans: Sequence[TokenSpan],
        usage: TokenUsage,
        timing: Timing | None,  # noqa: ARG002 - as others
    ) -> dict[str, Any]:
        tokens = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        results = self.results(spans)
        head = self.envelope.head("list")
        if "results" in results:
            # A ranking has the fields of another API.
            head = {"id": self.envelope.id, "model": self.envelope.model}
        return {**head, **results, "usage": tokens}


def _rows(
    kind: str, spans: Sequence[TokenSpan], key: str, value: Callable[[str], object]
) -> dict[str, Any]:
    return {
        "data": [
            {"index": index, "object": kind, key: value(span.sample.prompt.text)}
            for index, span in enumerate(spans)
        ]
    }


def _classes(spans: Sequence[TokenSpan]) -> dict[str, Any]:
    rows = []
    for index, span in enumerate(spans):
        first = len(span.sample.prompt.text) % 100 / 100
        row = {"index": index, "label": _LABELS[first < 0.5], "probs": [first, 1 - first]}
        rows.append({**row, "num_classes": len(_LABELS)})
    return {"data": rows}


def _score(pair: str) -> float:
    """Return the share of words that both texts of a pair have."""
    query, _, document = (frozenset(text.split()) for text in pair.partition(_SEPARATOR))
    return len(query & document) / max(1, len(query | document))


def _token(text: str) -> list[list[float]]:
    return [[float(len(word))] for word in text.split()]
