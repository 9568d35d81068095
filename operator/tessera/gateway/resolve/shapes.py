"""What decisions know of a request: its sizes, and by which hashes its prompt is found again."""

from array import array
from collections.abc import Mapping
from math import ceil

from tessera.domain.gateway.access import cache_salt
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.prefixes import BLOCK_BYTES, PromptBlocks, block_hashes
from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.picking.prediction import RequestMeans
from tessera.gateway.bodies.parsing import MAX_SESSION_BYTES, RequestFields
from tessera.gateway.bodies.prompt_size import NO_MEDIA, Media, PromptSize

SESSION_HEADER = b"x-session-id"


def request_shape(
    fields: RequestFields,
    size: PromptSize,
    model: OfferedModel,
    means: RequestMeans,
    prompt: PromptBlocks | None = None,
    priority: RequestPriority = RequestPriority.DEFAULT,
) -> RequestShape:
    """Return what decisions know of a request."""
    context = model.max_model_len
    input_tokens = size.estimate(context)
    asked = fields.output_tokens
    prompt_tokens = input_tokens // size.texts
    answer_tokens = round(means.output_tokens) if asked is None else asked
    if context is not None:
        rest = max(context - prompt_tokens, 1)
        asked = rest if asked is None else min(asked, context)
    return RequestShape(
        model=fields.model,
        input_tokens=input_tokens,
        max_output_tokens=(asked or 0) * fields.choices,
        context_tokens=prompt_tokens + answer_tokens,
        choices=fields.choices,
        stream=fields.streams,
        adapter=_adapter(fields, model),
        prompt=prompt,
        priority=priority,
    )


def prompt_blocks(
    fields: RequestFields,
    headers: Mapping[bytes, bytes],
    model: OfferedModel,
    sender: tuple[str, float],
    prompt_tokens: int,
    media: Media = NO_MEDIA,
) -> PromptBlocks | None:
    """Return the blocks of a prompt of about so many tokens; None where an engine keeps none.

    Those of tenants, and of adapters, that find nothing of each other in an engine have other
    hashes. The sender is a tenant, with its weight in the memory of records.
    """
    if not fields.prompt_fields:
        return None
    tenant, weight = sender
    salt = f"{cache_salt(model, tenant)}/{_adapter(fields, model)}"
    text, text_bytes = fields.prompt_text(media)
    # The rest of a body, which may be spaces, takes no room in a cache.
    prompt_tokens = max(1, min(prompt_tokens, text_bytes))
    session = headers.get(SESSION_HEADER, b"")[:MAX_SESSION_BYTES] or fields.session()
    return PromptBlocks(
        owner=tenant,
        # As long as its stream runs: a list takes five times as much.
        hashes=array("Q", block_hashes(text, salt)),
        tokens_per_block=BLOCK_BYTES * prompt_tokens / max(text_bytes, 1),
        prompt_tokens=prompt_tokens,
        weight=weight,
        session=None if session is None else hash((model.uid, salt, session)),
    )


def _adapter(fields: RequestFields, model: OfferedModel) -> str | None:
    return fields.model if fields.model in model.adapters else None


def likely_tokens(input_tokens: int, size: PromptSize, means: RequestMeans) -> int:
    """Return about how many tokens a prompt has, whose estimate is so many."""
    if size.text_bytes is None:
        return input_tokens
    return max(1, min(input_tokens, ceil(size.text_bytes * means.tokens_per_byte)))
