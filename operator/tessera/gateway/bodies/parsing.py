"""Reads what the gateway needs of a body, and changes a body without touching the rest of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, cast

import msgspec
from typing_extensions import override

from tessera.domain.gateway.prefixes import BLOCK_BYTES, MAX_BLOCKS
from tessera.domain.observed.drafts import TemperatureClass, temperature_class
from tessera.gateway.bodies.answer_size import VectorSize, vector_size
from tessera.gateway.bodies.json_values import check_marks, check_names, decode, with_fields
from tessera.gateway.bodies.prompt_size import (
    NO_MEDIA,
    Media,
    PromptSize,
    condense,
    of_conversation,
    of_inputs,
    of_pairs,
    of_texts,
)
from tessera.gateway.refusals import RequestError, invalid_request

_MAX_NAME = 256
_MAX_CHOICES = 128
_MAX_TOKENS = 10**9
MAX_PROMPT_BYTES = MAX_BLOCKS * BLOCK_BYTES
MAX_SESSION_BYTES = 512
_QUOTE = ord('"')

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_NAME)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=_MAX_CHOICES)]
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(.*)`")
_UNLISTED = re.compile(r"Object contains unknown field `([^`]{0,100})")
_TEMPLATE_ARGUMENTS = "chat_template_kwargs"

_NONE = msgspec.Raw()


class _TemplateArguments(msgspec.Struct, gc=False):
    """Of the arguments of a chat template those that are the engine's own, and no variables."""

    chat_template: msgspec.Raw = _NONE
    tokenize: msgspec.Raw = _NONE


_template_arguments = msgspec.json.Decoder(_TemplateArguments)


class RequestSummary(msgspec.Struct, frozen=True, gc=False):
    """What is needed of a request once an engine has its body."""

    model: str
    streams: bool
    usage_asked: bool
    output_tokens: int | None
    choices: int
    temperature_class: TemperatureClass
    computes: bool
    """An engine computes something for it."""


class RequestFields(msgspec.Struct, gc=False):
    """What every path needs; fields that are not named here are not read at all."""

    media_fields: ClassVar[tuple[str, ...]] = ()
    """The fields in which images and clips may be."""
    unlisted_fields: ClassVar[tuple[str, ...]] = ()
    """What is read, so that it counts, and passes to engines of one tenant alone."""
    prompt_fields: ClassVar[tuple[str, ...]] = ()
    """What an engine keeps in its cache, in the order in which chat templates have it."""
    session_fields: ClassVar[tuple[str, ...]] = ()
    """Where a client says which prompts begin alike: the first that is given counts."""
    sole_fields: ClassVar[tuple[str, ...]] = ("model",)
    """Of fields that decide where a request goes and what it costs: each comes once."""
    opening_bytes: ClassVar[int | None] = None
    """Of a prompt that is no conversation, those that tell it from others."""
    computes: ClassVar[bool] = False
    """Whether an engine computes something for it, and does not only count tokens."""
    model: _Name

    @property
    def streams(self) -> bool:
        """Return whether the answer comes as a stream."""
        return False

    @property
    def usage_asked(self) -> bool:
        """Return whether the client itself asked for usage in the stream."""
        return True

    @property
    def output_tokens(self) -> int | None:
        """Return the most tokens of one choice that the client asks for; None without a limit."""
        return 0

    @property
    def choices(self) -> int:
        """Return how many answers are generated."""
        return 1

    @property
    def yields(self) -> bool:
        """Return whether the client lets the requests of others go first."""
        return False

    @property
    def temperature_class(self) -> TemperatureClass:
        """Return at which temperature it is sampled."""
        return TemperatureClass.DEFAULT

    def prompt_size(self, body: bytes) -> PromptSize:
        """Return what the engine has to read of this body.

        Raises RequestError.
        """
        return of_conversation(body)

    def vector_size(self, width: int | None) -> VectorSize | None:
        """Return the size of the embedding of a text, of a model with such a width.

        None where the answer has none, or its size is not known.
        """
        del width
        return None

    def size_with(self, size: PromptSize, media: Media) -> PromptSize:
        """Return the size of a body of which these images and clips counted as text."""
        return size.with_inline(each for inline in media.values() for each in inline)

    @property
    def media(self) -> Mapping[str, memoryview]:
        """Return the values in which images and clips may be, by their fields."""
        return {name: memoryview(getattr(self, name)) for name in self.media_fields}

    def prompt_values(self) -> list[memoryview]:
        """Return what an engine keeps in its cache, field by field."""
        return [memoryview(getattr(self, name)) for name in self.prompt_fields]

    def prompt_text(self, media: Media = NO_MEDIA) -> tuple[bytes, int]:
        """Return the prompt as the body has it, of a long one the beginning, and all its bytes.

        An image or a clip takes as many of them as text of as many tokens, by which others differ.
        """
        values = self.prompt_values()
        if not media:
            text = b"".join(value[:MAX_PROMPT_BYTES] for value in values)
            return text, sum(map(len, values))
        pieces, size = [], 0
        for name, value in zip(self.prompt_fields, values, strict=True):
            condensed, all_bytes = condense(value, media.get(name, ()), MAX_PROMPT_BYTES)
            pieces.append(condensed)
            size += all_bytes
        return b"".join(pieces), size

    def session(self) -> bytes | None:
        """Return what the client calls its session, as the body has it."""
        for name in self.session_fields:
            value = memoryview(getattr(self, name))
            if 2 < len(value) <= MAX_SESSION_BYTES and value[0] == _QUOTE:
                return bytes(value)
        return None

    def changes(
        self, max_output_tokens: int | None, cache_salt: str | None, *, yields: bool
    ) -> dict[str, Any]:
        """Return the fields that have to differ for the engine.

        It lets others go first as well, of a request that `yields`.
        """
        del max_output_tokens, cache_salt, yields
        return {}

    def summary(self) -> RequestSummary:
        """Return what keeps nothing of the body, whose size is known then."""
        return RequestSummary(
            self.model,
            self.streams,
            self.usage_asked,
            self.output_tokens,
            self.choices,
            self.temperature_class,
            self.computes,
        )

    def has(self, name: str) -> bool:
        """Return whether the client sent this field."""
        value = getattr(self, name)
        return value is not msgspec.UNSET and value is not _NONE


class ConversationFields(RequestFields, gc=False):
    """`/tokenize` and `/v1/messages/count_tokens`, which compute nothing."""

    media_fields = ("messages", "system")
    messages: msgspec.Raw = _NONE
    system: msgspec.Raw = _NONE


class _ComputedFields(RequestFields, gc=False):
    computes = True
    priority: int | msgspec.UnsetType | None = msgspec.UNSET
    cache_salt: msgspec.Raw = _NONE

    @property
    @override
    def yields(self) -> bool:
        return isinstance(self.priority, int) and self.priority > 0

    @override
    def changes(
        self, max_output_tokens: int | None, cache_salt: str | None, *, yields: bool
    ) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        # Engines run low numbers first, so that a negative one would pass all others.
        if isinstance(self.priority, int) and self.priority < 0:
            changes["priority"] = 0
        if yields and not self.yields:
            changes["priority"] = 1
        if cache_salt is not None:
            changes["cache_salt"] = cache_salt
        return changes


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _GenerationFields(_ComputedFields, gc=False):
    output_fields: ClassVar[tuple[str, ...]] = ("max_tokens",)
    """The fields that limit the generated tokens: the first that is given counts."""
    sole_fields = (*RequestFields.sole_fields, "stream", "max_tokens")
    stream: bool | msgspec.UnsetType | None = msgspec.UNSET
    temperature: msgspec.Raw = _NONE
    """Engines refuse what is no temperature, and in their own words."""

    @property
    @override
    def temperature_class(self) -> TemperatureClass:
        try:
            return temperature_class(float(bytes(self.temperature)))
        except ValueError:
            return TemperatureClass.DEFAULT

    @property
    @override
    def streams(self) -> bool:
        return self.stream is True

    @override
    def changes(
        self, max_output_tokens: int | None, cache_salt: str | None, *, yields: bool
    ) -> dict[str, Any]:
        changes = super().changes(max_output_tokens, cache_salt, yields=yields)
        asked = self.output_tokens
        if max_output_tokens is not None and (asked is None or asked > max_output_tokens):
            changes[self.output_field] = max_output_tokens
        if asked:
            most = min(asked, max_output_tokens or asked)
            for name in self.output_fields:
                # Engines differ in which of two names counts.
                if (getattr(self, name) or 0) > most:
                    changes[name] = most
        return changes

    @property
    def output_field(self) -> str:
        """Return the field that limits the generated tokens."""
        for name in self.output_fields:
            if getattr(self, name):
                return name
        return self.output_fields[-1]

    @property
    @override
    def output_tokens(self) -> int | None:
        tokens: int | None = getattr(self, self.output_field) or None
        return tokens


class _UsageStreamFields(_GenerationFields, gc=False):
    stream_options: _StreamOptions | msgspec.UnsetType | None = msgspec.UNSET

    @property
    @override
    def usage_asked(self) -> bool:
        options = self.stream_options
        return isinstance(options, _StreamOptions) and options.include_usage is True

    @override
    def changes(
        self, max_output_tokens: int | None, cache_salt: str | None, *, yields: bool
    ) -> dict[str, Any]:
        changes = super().changes(max_output_tokens, cache_salt, yields=yields)
        if self.stream and not self.usage_asked:
            changes["stream_options"] = {"include_usage": True}
        return changes


class ChatFields(_UsageStreamFields, gc=False):
    """`/v1/chat/completions`."""

    output_fields = ("max_completion_tokens", "max_tokens")
    sole_fields = (*_GenerationFields.sole_fields, "max_completion_tokens", "n")
    media_fields = ("messages",)
    prompt_fields = ("tools", "messages")
    session_fields = ("prompt_cache_key", "user")
    prompt_cache_key: msgspec.Raw = _NONE
    user: msgspec.Raw = _NONE
    tools: msgspec.Raw = _NONE
    messages: msgspec.Raw = _NONE
    max_tokens: _Count | msgspec.UnsetType | None = msgspec.UNSET
    max_completion_tokens: _Count | msgspec.UnsetType | None = msgspec.UNSET
    n: _Choices | None = None

    @property
    @override
    def choices(self) -> int:
        return self.n or 1


class CompletionFields(_UsageStreamFields, gc=True, dict=True):
    """`/v1/completions`."""

    sole_fields = (
        *_GenerationFields.sole_fields,
        *("n", "best_of", "prompt", "suffix", "prompt_embeds"),
    )
    unlisted_fields = ("prompt_embeds",)
    prompt_fields = ("prompt",)
    opening_bytes = 4096
    session_fields = ("user",)
    user: msgspec.Raw = _NONE
    prompt: msgspec.Raw = _NONE
    suffix: msgspec.Raw = _NONE
    prompt_embeds: msgspec.Raw = _NONE
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=_MAX_TOKENS)] | msgspec.UnsetType | None = (
        msgspec.UNSET
    )
    n: _Choices | None = None
    best_of: Annotated[int, msgspec.Meta(ge=0, le=_MAX_CHOICES)] | None = None

    @property
    @override
    def output_tokens(self) -> int | None:
        # Without it, engines generate 16 tokens, as the API says.
        return 16 if self.max_tokens is msgspec.UNSET else self.max_tokens

    @property
    @override
    def choices(self) -> int:
        return max(self.n or 1, self.best_of or 1) * self._prompts.texts

    @override
    def prompt_size(self, body: bytes) -> PromptSize:
        return self._prompts

    @cached_property
    def _prompts(self) -> PromptSize:
        prompts = of_texts(memoryview(self.prompt), "prompt")
        texts = prompts.texts
        size_bytes = prompts.size_bytes + texts * len(memoryview(self.suffix))
        if memoryview(self.prompt_embeds):
            embeds = of_texts(memoryview(self.prompt_embeds), "prompt_embeds")
            texts, size_bytes = texts + embeds.texts, size_bytes + embeds.size_bytes
        return prompts._replace(texts=texts, size_bytes=size_bytes)


class InputFields(_ComputedFields, gc=False):
    """`/classify`, which also takes a conversation."""

    sole_fields = (*RequestFields.sole_fields, "input")
    media_fields = ("input", "messages")
    input: msgspec.Raw = _NONE
    messages: msgspec.Raw = _NONE

    @override
    def prompt_size(self, body: bytes) -> PromptSize:
        return of_inputs(memoryview(self.input), "input", body)


class EmbeddingFields(InputFields, gc=False):
    """`/v1/embeddings` and `/pooling`."""

    dimensions: msgspec.Raw = _NONE
    encoding_format: msgspec.Raw = _NONE
    embed_dtype: msgspec.Raw = _NONE
    use_activation: msgspec.Raw = _NONE

    @override
    def vector_size(self, width: int | None) -> VectorSize | None:
        asked = self.dimensions, self.encoding_format, self.embed_dtype, self.use_activation
        return vector_size(width, *(memoryview(value) for value in asked))


class _PairFields(_ComputedFields, gc=False):
    sides: ClassVar[tuple[Sequence[str], Sequence[str]]]
    """The names of both sides: of several that are given for one, the largest counts."""
    instruction: msgspec.Raw = _NONE

    @override
    def prompt_size(self, body: bytes) -> PromptSize:
        return self._pairs(NO_MEDIA)

    @override
    def size_with(self, size: PromptSize, media: Media) -> PromptSize:
        return self._pairs(media)

    def _pairs(self, media: Media) -> PromptSize:
        sizes = []
        for names in self.sides:
            given = {name: memoryview(getattr(self, name)) for name in names}
            if not any(given.values()):
                raise invalid_request(f"{names[0]}: is required", names[0])
            of_names = [
                of_texts(text, name, structured=True).with_inline(media.get(name, ()))
                for name, text in given.items()
                if text
            ]
            media_tokens = max(size.media_tokens for size in of_names)
            sizes.append(max(of_names)._replace(media_tokens=media_tokens))
        queries, documents = sizes
        return of_pairs(queries, documents, len(memoryview(self.instruction)))


class RerankFields(_PairFields, gc=False):
    """`/rerank`."""

    sides = (("query",), ("documents",))
    sole_fields = (*RequestFields.sole_fields, "query", "documents")
    media_fields = ("query", "documents")
    query: msgspec.Raw = _NONE
    documents: msgspec.Raw = _NONE


class ScoreFields(_PairFields, gc=False):
    """`/score`, whose two sides have several names each."""

    sides = (("text_1", "queries", "data_1"), ("text_2", "documents", "items", "data_2"))
    media_fields = (*sides[0], *sides[1])
    sole_fields = (*RequestFields.sole_fields, *media_fields)
    text_1: msgspec.Raw = _NONE
    queries: msgspec.Raw = _NONE
    data_1: msgspec.Raw = _NONE
    text_2: msgspec.Raw = _NONE
    documents: msgspec.Raw = _NONE
    items: msgspec.Raw = _NONE
    data_2: msgspec.Raw = _NONE


class ResponsesFields(_GenerationFields, gc=False):
    """`/v1/responses`."""

    output_fields = ("max_output_tokens",)
    sole_fields = (*RequestFields.sole_fields, "stream", "max_output_tokens")
    media_fields = ("input",)
    prompt_fields = ("tools", "instructions", "input")
    session_fields = ("prompt_cache_key", "user")
    prompt_cache_key: msgspec.Raw = _NONE
    user: msgspec.Raw = _NONE
    tools: msgspec.Raw = _NONE
    instructions: msgspec.Raw = _NONE
    input: msgspec.Raw = _NONE
    max_output_tokens: _Count | msgspec.UnsetType | None = msgspec.UNSET
    background: bool | None = None
    previous_response_id: str | None = None


class MessagesFields(_GenerationFields, gc=False):
    """`/v1/messages`."""

    media_fields = ("messages", "system")
    prompt_fields = ("tools", "system", "messages")
    tools: msgspec.Raw = _NONE
    messages: msgspec.Raw = _NONE
    system: msgspec.Raw = _NONE
    max_tokens: _Count | msgspec.UnsetType = msgspec.UNSET


def with_only(fields: type[RequestFields], others: Iterable[str]) -> type[RequestFields]:
    """Return the type of bodies that have no fields but these and those that are read."""
    only = msgspec.defstruct(
        fields.__name__,
        [(name, msgspec.Raw, _NONE) for name in others if name not in fields.__struct_fields__],
        bases=(fields,),
        forbid_unknown_fields=True,
        gc=fields.__struct_config__.gc,
        dict=fields.__struct_config__.dict,
    )
    return cast("type[RequestFields]", only)


def parse(decoder: msgspec.json.Decoder[RequestFields], body: bytes) -> RequestFields:
    """Read the fields of a body.

    Raises RequestError, which names the field.
    """
    check_marks(body)
    try:
        fields = _stateless(decode(decoder, body))
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    check_names(body, fields.sole_fields)
    return fields


def parse_with_unlisted(
    decoder: msgspec.json.Decoder[RequestFields],
    listed: msgspec.json.Decoder[RequestFields],
    body: bytes,
) -> tuple[RequestFields, str | None]:
    """Read the fields of a body, and the name of one that is not listed, if there is any.

    Raises RequestError, which names the field.
    """
    check_marks(body)
    try:
        fields = _stateless(decode(listed, body))
    except msgspec.ValidationError as error:
        unlisted = _UNLISTED.match(str(error))
        if unlisted is None:
            raise _wrong_field(str(error)) from None
    else:
        check_names(body, fields.sole_fields)
        return fields, next(filter(fields.has, fields.unlisted_fields), _unlisted_argument(fields))
    return parse(decoder, body), unlisted[1]


def _unlisted_argument(fields: RequestFields) -> str | None:
    """Return an argument of the chat template that is another template, or the like."""
    arguments = memoryview(getattr(fields, _TEMPLATE_ARGUMENTS, _NONE))
    if bytes(arguments[:1]) != b"{":
        return None
    given = msgspec.structs.asdict(decode(_template_arguments, arguments))
    names = (name for name, value in given.items() if value is not _NONE)
    return next((f"{_TEMPLATE_ARGUMENTS}.{name}" for name in names), None)


def body_for_engine(
    body: bytes,
    parsed: RequestFields,
    served_name: str,
    max_output_tokens: int | None,
    cache_salt: str | None = None,
    *,
    yields: bool = False,
) -> bytes:
    """Return the body with the fields that have to differ, every other value byte by byte as sent.

    The engine knows the model by `served_name`, and finds in its cache what has the same salt. What
    `yields` waits there for others as well.
    """
    changes = parsed.changes(max_output_tokens, cache_salt, yields=yields)
    if parsed.model != served_name:
        changes["model"] = served_name
    if not changes:
        return body
    if any(parsed.has(name) for name in changes):
        return with_fields(body, changes)
    return b"".join((memoryview(body)[: body.rindex(b"}")], b",", msgspec.json.encode(changes)[1:]))


def _stateless(body: RequestFields) -> RequestFields:
    """Refuse what a later request could only get from the same replica."""
    if isinstance(body, ResponsesFields):
        if body.background:
            raise invalid_request(
                "background: responses are not stored, so true is not supported", "background"
            )
        if body.previous_response_id is not None:
            raise invalid_request(
                "previous_response_id: responses are not stored; send the whole input instead",
                "previous_response_id",
            )
    return body


def _wrong_field(text: str) -> RequestError:
    """Say what msgspec says, with the field in front."""
    missing = _MISSING.search(text)
    if missing:
        return invalid_request(f"{missing[1]}: is required", missing[1])
    place = _PLACE.match(text)
    what, path = (place["what"], place["path"]) if place else (text, None)
    what = what.replace("`", "")
    return invalid_request(f"{path}: {what}" if path else f"the body: {what}", path)
