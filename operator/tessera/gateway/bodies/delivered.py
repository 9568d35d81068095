"""What the client of a stream got, as another engine that goes on with it needs it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import msgspec

# Clients and engines may give others, which no JSON of ours can have.
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]

_NULL = msgspec.Raw(b"null")


class NotContinuableError(Exception):
    """What the client got, or its request, cannot be continued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What a client got of a stream."""

    head: Mapping[str, msgspec.Raw]
    """Of its events: `id`, `object`, `created` and `model`, as far as they have them."""
    text: str
    """What the next engine reads after the prompt."""
    repeated: str = ""
    """What the client has after that, and the next engine generates again."""
    token_ids: tuple[int, ...]
    """Those of the text; empty where the stream has none."""
    events: int
    """Those with that text; each has a token at least."""
    is_finished: bool
    """It has a reason for its end."""


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: msgspec.Raw = _NULL
    tool_calls: Sequence[msgspec.Raw] | None = None
    function_call: msgspec.Raw = _NULL

    @property
    def is_text(self) -> bool:
        others = (self.reasoning, self.reasoning_content, self.tool_calls)
        raw = bytes(self.refusal), bytes(self.function_call)
        return not any(others) and raw == (b"null", b"null")


class _TextChoice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: tuple[TokenId, ...] | None = None


class _TextEvent(msgspec.Struct, gc=False):
    choices: Sequence[_TextChoice] = ()
    id: msgspec.Raw = _NULL
    object: msgspec.Raw = _NULL
    created: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL


_event = msgspec.json.Decoder(_TextEvent)


def read_delivered(events: Iterable[bytes]) -> Delivered:
    """Read what the events say that a client got; of comments that is nothing.

    Raises NotContinuableError where anything else was generated than one text.
    """
    texts: list[str] = []
    token_ids: list[int] = []
    head: _TextEvent | None = None
    tokens_with_text = 0
    is_chat = is_finished = False
    for data in filter(None, events):
        try:
            event = _event.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NotContinuableError(str(error)) from None
        head = head or event
        for choice in event.choices:
            is_chat = is_chat or choice.delta is not None
            delta = choice.delta or _Delta()
            if choice.index or not delta.is_text:
                raise NotContinuableError("the stream has more than one text")
            token_ids += choice.token_ids or ()
            if piece := choice.text or delta.content:
                texts.append(piece)
                tokens_with_text = len(token_ids)
            is_finished = is_finished or choice.finish_reason is not None
    if head is None or not texts:
        raise NotContinuableError("the stream has no text")
    whole = "".join(texts)
    # Many templates cut the space at the end of a turn.
    text = whole.rstrip() if is_chat else whole
    if not text:
        raise NotContinuableError("the stream has nothing but space")
    starts = accumulate(map(len, texts), initial=0)
    shared = {"id": head.id, "object": head.object, "created": head.created, "model": head.model}
    return Delivered(
        # Copies, since these are parts of the whole stream.
        head={name: value.copy() for name, value in shared.items() if value is not _NULL},
        text=text,
        repeated=whole[len(text) :],
        # The others are a part of a character, or of a stop string, that the client has not got.
        token_ids=tuple(token_ids[:tokens_with_text]),
        events=sum(start < len(text) for start in starts),
        is_finished=is_finished,
    )
