"""The HTTP paths on which an engine answers, by what its model returns."""

from collections.abc import Mapping

from tessera.api.model_files import PoolingTask
from tessera.api.model_provider import ProviderProtocol

# Of every engine.
TOKENIZER_PATHS = ("/tokenize", "/detokenize")
_GENERATING = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
)
_SCORING = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")
_POOLING: Mapping[PoolingTask, tuple[str, ...]] = {
    # The engine compares embeddings by their angle, so an embedder ranks as well.
    "Embed": ("/v1/embeddings", *_SCORING, "/pooling"),
    "Score": (*_SCORING, "/classify", "/pooling"),
    "Classify": ("/classify", "/pooling"),
    "Tokens": ("/pooling",),
}

# Of providers, which answer on these paths alone.
PROTOCOLS: Mapping[str, ProviderProtocol] = {
    "/v1/chat/completions": "OpenAIChat",
    "/v1/responses": "OpenAIResponses",
    "/v1/messages": "AnthropicMessages",
}


def own_paths(task: PoolingTask | None) -> tuple[str, ...]:
    """Return the paths of a model by which it is used, the one of its probe first."""
    return _GENERATING if task is None else _POOLING[task]
