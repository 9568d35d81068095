"""What a service needs to know of a request before it answers: sizes, prefix, what it may hold."""

from dataclasses import dataclass, replace

from tessera.domain.gateway.directory import OfferedModel, OutsideModel
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.gateway.usage_record import StreamLatency
from tessera.domain.limits.gateway_limits import Admitted
from tessera.domain.model.paths import TOKENIZER_PATHS
from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tessera.gateway.bodies.constraints import WORK, check_compiled, compiled_values
from tessera.gateway.bodies.media import read_media
from tessera.gateway.bodies.parsing import RequestSummary
from tessera.gateway.bodies.prompt_size import NO_MEDIA, Media, PromptSize
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.fleet.replicas import Replicas
from tessera.gateway.identify.senders import RecordFields, Senders
from tessera.gateway.receive.receiver import Received
from tessera.gateway.refusals import path_not_served, too_many_texts, unlisted_field
from tessera.gateway.resolve.models import Resolved, resolved_fields
from tessera.gateway.resolve.shapes import likely_tokens, prompt_blocks, request_shape, with_turns


@dataclass(slots=True, kw_only=True)
class Chosen:
    """A request as the service sees it that is to answer it."""

    received: Received
    model: OfferedModel
    summary: RequestSummary
    size: PromptSize
    shape: RequestShape
    schema: bytes | None = None
    """A digest of what an engine that tenants share has to compile; None without anything."""
    counted_tokens: int = 0
    """Those of its prompt, where an engine was asked for them: input of its sender's limits too."""
    admitted: Admitted | None = None
    """By which limits it is counted, also if there is no money for it then."""

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        fields = resolved_fields(self.received, self.model)
        if self.shape.stream and self.model.outside is None:
            model = self.model
            fields["latency"] = StreamLatency(
                ttft_target_ns=round(model.ttft_seconds * 1e9),
                itl_target_ns=round(model.itl_seconds * 1e9),
            )
        return fields


class Chooser:
    """Measures requests for the services that are to answer them."""

    def __init__(self, senders: Senders, replicas: Replicas, turns: Turns) -> None:
        self._senders, self._replicas, self._turns = senders, replicas, turns

    async def choose(self, resolved: Resolved) -> Chosen:
        """Return the request as its service sees it.

        Raises RequestError with status 400 or 404.
        """
        received, model, take = resolved.received, resolved.model, self._turns.take
        if model.outside is not None:
            return self._choose_outside(resolved, model.outside)
        identified, fields, body = received.identified, received.fields, received.body
        path = identified.path_item.path
        if model.paths and path not in (*model.paths, *TOKENIZER_PATHS):
            raise path_not_served(received.model, path, model)
        if model.is_shared and received.unlisted is not None:
            raise unlisted_field(received.unlisted)
        schema = None
        if model.is_shared:
            values = await take(len(body), lambda: compiled_values(fields))
            work = WORK * sum(map(len, values.values()))
            schema = await take(work, lambda: check_compiled(values))
        size, media = await measured(received, model, self._turns)
        vector = fields.vector_size(model.embedding_width)
        if vector is not None and vector.passes_bound(size.texts):
            raise too_many_texts(size.texts, vector.texts, MAX_RESPONSE_BYTES)
        means, identity = self._replicas.means(model), identified.identity
        sender = identity.tenant, self._senders.weight_of(identity)
        tokens = likely_tokens(size.estimate(model.max_model_len), size, means)
        headers, peers = identified.headers, self._replicas.peers
        prompt = await take(
            len(body), lambda: prompt_blocks(fields, headers, model, sender, tokens, media)
        )
        if prompt is not None and peers.count > 1:
            blocks, secret = prompt, peers.secret
            prompt = await take(
                len(body), lambda: with_turns(blocks, fields, headers, model, media, secret)
            )
        shape = request_shape(fields, size, model, means, prompt, received.priority)
        if (variant := received.variant) is not None:
            shape = replace(shape, variant=variant)
        return Chosen(
            received=received,
            model=model,
            summary=fields.summary(),
            size=size,
            shape=shape,
            schema=schema,
        )

    def _choose_outside(self, resolved: Resolved, outside: OutsideModel) -> Chosen:
        """Return the request as a provider sees it, which judges the fields of its body itself."""
        received, model, size = resolved.received, resolved.model, resolved.size
        assert size is not None  # noqa: S101 - else it is not known to take the request
        fields, means = received.fields, self._replicas.means(model)
        shape = request_shape(fields, size, model, means, None, received.priority)
        most = outside.model.max_output_tokens * fields.choices
        return Chosen(
            received=received,
            model=model,
            summary=fields.summary(),
            size=size,
            shape=replace(shape, max_output_tokens=min(shape.max_output_tokens, most)),
        )


async def measured(
    received: Received, model: OfferedModel, turns: Turns
) -> tuple[PromptSize, Media]:
    """Return what has to be read for a request, and its images and clips.

    Raises RequestError with status 400.
    """
    fields, body = received.fields, received.body
    size = await turns.take(len(body), lambda: fields.prompt_size(body))
    if not size.media_tokens:
        return size, NO_MEDIA
    media = await turns.take(len(body), lambda: read_media(fields.media, model))
    return await turns.take(len(body), lambda: fields.size_with(size, media)), media
