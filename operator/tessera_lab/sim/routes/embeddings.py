"""`/v1/embeddings`, the path of an engine with `--runner pooling`."""

import array
import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from pydantic import PositiveInt

from tessera.domain.perf.footprint import hidden_size
from tessera_lab.sim.bodies import PoolingBody, read_body
from tessera_lab.sim.dispatcher import GenerationDispatcher
from tessera_lab.sim.encoders import Envelope, TokenSpan
from tessera_lab.sim.generation_spec import GenerationSpec
from tessera_lab.sim.usage import Timing, TokenUsage


class EmbeddingBody(PoolingBody):
    """`/v1/embeddings`."""

    input: str | list[int] | list[str] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: PositiveInt | None = None


def embedding_routes(dispatcher: GenerationDispatcher) -> list[web.RouteDef]:
    """Return the handler of vectors: equal texts have equal ones, which otherwise mean nothing."""
    width = hidden_size(dispatcher.config.shape)

    async def embed(request: web.Request) -> web.Response:
        body = await read_body(EmbeddingBody, request)

        def encoder(envelope: Envelope, _: GenerationSpec) -> EmbeddingEncoder:
            return EmbeddingEncoder(
                envelope, min(body.dimensions or width, width), body.encoding_format
            )

        spec = dispatcher.spec(body.generation(body.input))
        return await dispatcher.respond_whole(request, spec, "embd", encoder)

    return [web.post("/v1/embeddings", embed)]


@dataclass(frozen=True, slots=True)
class EmbeddingEncoder:
    """The response of `/v1/embeddings`."""

    envelope: Envelope
    width: int
    encoding: Literal["float", "base64"]

    def whole(
        self,
        spans: Sequence[TokenSpan],
        usage: TokenUsage,
        timing: Timing | None,  # noqa: ARG002 - as others
    ) -> dict[str, Any]:
        data = [
            {"index": index, "object": "embedding", "embedding": self._encoded(span)}
            for index, span in enumerate(spans)
        ]
        usage_body = {
            "prompt_tokens": usage.prompt_tokens,
            "total_tokens": usage.prompt_tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        }
        return {**self.envelope.head("list"), "data": data, "usage": usage_body}

    def _encoded(self, span: TokenSpan) -> str | list[float]:
        vector = _unit_vector(span.sample.prompt.text, self.width)
        if self.encoding == "float":
            return vector.tolist()
        return base64.b64encode(vector.tobytes()).decode()


def _unit_vector(text: str, width: int) -> "array.array[float]":
    """Return numbers of 32 bits, little-endian as on all hardware that engines run on."""
    numbers = array.array("h", hashlib.shake_256(text.encode()).digest(2 * width))
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return array.array("f", (number / length for number in numbers))
