"""What decisions know of a request: its sizes, and by which hashes its prompt is found again."""

from array import array
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from math import ceil

from tessera.domain.gateway.access import cache_salt
from tessera.domain.gateway.coding_clients import named_session
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.prefixes import BLOCK_BYTES, PromptBlocks, PromptTurns, block_hashes
from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.picking.prediction import RequestMeans
from tessera.gateway.bodies.messages import conversation_parts
from tessera.gateway.bodies.parsing import RequestFields
from tessera.gateway.bodies.prompt_size import NO_MEDIA, Media, PromptSize, condensed_sizes

SESSION_HEADER = b"x-session-id"
_KEY_BYTES = 8


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
    salt = _salt(fields, model, tenant)
    text, text_bytes = fields.prompt_text(media)
    # The rest of a body, which may be spaces, takes no room in a cache.
    prompt_tokens = max(1, min(prompt_tokens, text_bytes))
    session = headers.get(SESSION_HEADER) or fields.session()
    return PromptBlocks(
        owner=tenant,
        # As long as its stream runs: a list takes five times as much.
        hashes=array("Q", block_hashes(text, salt)),
        tokens_per_block=BLOCK_BYTES * prompt_tokens / max(text_bytes, 1),
        prompt_tokens=prompt_tokens,
        weight=weight,
        session=None if session is None else hash((model.uid, salt, session)),
    )


def with_turns(
    prompt: PromptBlocks,
    fields: RequestFields,
    headers: Mapping[bytes, bytes],
    model: OfferedModel,
    media: Media,
    secret: bytes,
) -> PromptBlocks:
    """Return the blocks with where the turns are, and the keys by which gateways find its owner."""
    salt = f"{model.uid}/{_salt(fields, model, prompt.owner)}"
    of_cache = blake2b(salt.encode(), key=secret, digest_size=_KEY_BYTES)
    parts = conversation_parts(fields.prompt_values(), fields.opening_bytes)
    sizes = condensed_sizes(
        parts.pieces, [each for name in fields.prompt_fields for each in media.get(name, ())]
    )
    beginning_bytes, opening_bytes = sum(sizes[: parts.first]), sizes[parts.first]
    session = named_session(headers)
    key = of_cache.copy()
    if session is not None:
        key.update(b"session\0" + session)
    if session is None or beginning_bytes > opening_bytes:
        # JSON has no NUL.
        of_cache.update(b"prompt\0")
        for value in parts.pieces[: parts.first]:
            of_cache.update(value)
    if session is None:
        key = of_cache.copy()
        cache_key = memoryview(getattr(fields, "prompt_cache_key", b""))
        # Of another type it is none, as null.
        name = cache_key if bytes(cache_key[:1]) == b'"' else b""
        for part in (b"\0", name, b"\0", parts.pieces[parts.first]):
            key.update(part)
    tokens_per_byte = prompt.tokens_per_block / BLOCK_BYTES
    turns = PromptTurns(
        key=int.from_bytes(key.digest()),
        beginning_key=int.from_bytes(of_cache.digest()),
        beginning_tokens=int(beginning_bytes * tokens_per_byte),
        opening_tokens=int((beginning_bytes + opening_bytes) * tokens_per_byte),
        earlier_tokens=int(sum(sizes[: parts.earlier]) * tokens_per_byte),
    )
    return replace(prompt, turns=turns)


def _salt(fields: RequestFields, model: OfferedModel, tenant: str) -> str:
    return f"{cache_salt(model, tenant)}/{_adapter(fields, model)}"


def _adapter(fields: RequestFields, model: OfferedModel) -> str | None:
    return fields.model if fields.model in model.adapters else None


def likely_tokens(input_tokens: int, size: PromptSize, means: RequestMeans) -> int:
    """Return about how many tokens a prompt has, whose estimate is so many."""
    if size.text_bytes is None:
        return input_tokens
    return max(1, min(input_tokens, ceil(size.text_bytes * means.tokens_per_byte)))
