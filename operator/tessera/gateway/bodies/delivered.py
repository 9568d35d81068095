"""What the client of a stream got, as another engine that goes on with it needs it."""

from collections.abc import Iterable, Mapping

import msgspec

_NULL = msgspec.Raw(b"null")
_EMPTY = (_NULL, msgspec.Raw(b'""'), msgspec.Raw(b"[]"))
_SPACE = b" \t\r\n"
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
# Clients and engines may give larger numbers, which are no tokens.
_MAX_DIGITS = 10


class NotContinuableError(Exception):
    """What the client got, or its request, cannot be continued."""


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL
    refusal: msgspec.Raw = _NULL
    tool_calls: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL

    @property
    def is_text(self) -> bool:
        others = (self.reasoning, self.reasoning_content, self.tool_calls)
        return (
            all(other is _NULL or other in _EMPTY for other in others)
            and self.refusal == self.function_call == _NULL
        )


class _TextChoice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: msgspec.Raw = _NULL


class _OnlyChoice(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """An array of one choice at most: of a longer one, no object is made."""

    first: _TextChoice | None = None


class _TextEvent(msgspec.Struct, gc=False):
    choices: _OnlyChoice | None = None


_event = msgspec.json.Decoder(_TextEvent)


class Delivered:
    """What a client got of a stream: all of it is read once, and little is kept of it."""

    def __init__(self, head: Mapping[str, msgspec.Raw]) -> None:
        self.head = head
        """Of its events: `id`, `object`, `created` and `model`, as far as they have them."""
        self.is_finished = False
        """It has a reason for its end."""
        self._is_chat = False
        # UTF-8; up to the end is all but the space behind it.
        self._text, self._text_end = bytearray(), 0
        # JSON, without the brackets of its array; up to the end, their text came.
        self._token_ids, self._token_ids_end = bytearray(), 0
        self._pieces = self._pieces_to_end = 0

    @property
    def size(self) -> int:
        """Return the bytes that it keeps."""
        return len(self._text) + len(self._token_ids)

    def read(self, events: Iterable[bytes]) -> None:
        """Read what more events say; of comments that is nothing.

        Raises NotContinuableError where anything else was generated than one text.
        """
        for data in filter(None, events):
            try:
                event = _event.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise NotContinuableError(str(error)) from None
            choice = None if event.choices is None else event.choices.first
            if choice is None:
                continue
            if choice.index or not (choice.delta is None or choice.delta.is_text):
                raise NotContinuableError("the stream has more than one text")
            if choice.token_ids is not _NULL:
                self._add_token_ids(choice.token_ids)
            if choice.delta is not None:
                self._is_chat = True
            if piece := choice.text or (choice.delta and choice.delta.content):
                self._add_text(piece)
            if choice.finish_reason is not None:
                self.is_finished = True

    def check(self) -> None:
        """Raise NotContinuableError where there is no text that could go on."""
        if not self._text:
            raise NotContinuableError("the stream has no text")
        if not self._end:
            raise NotContinuableError("the stream has nothing but space")

    @property
    def text(self) -> str:
        """Return what the next engine reads after the prompt."""
        return self._text[: self._end].decode()

    @property
    def text_bytes(self) -> int:
        """Return the length of that, which has a byte at least for each of its tokens."""
        return self._end

    @property
    def repeated(self) -> str:
        """Return what the client has after that, and the next engine generates again."""
        return self._text[self._end :].decode()

    @property
    def token_ids(self) -> bytes:
        """Return those of the text, as JSON with commas between them; empty without any.

        The others are a part of a character, or of a stop string, that the client has not got.
        """
        return bytes(self._token_ids[: self._token_ids_end])

    @property
    def tokens(self) -> int:
        """Return how many token ids the text has."""
        ids = self.token_ids
        return ids.count(b",") + bool(ids)

    @property
    def events(self) -> int:
        """Return how many events have that text; each has a token at least."""
        return self._pieces_to_end if self._is_chat else self._pieces

    @property
    def _end(self) -> int:
        # Many templates cut the space at the end of a turn.
        return self._text_end if self._is_chat else len(self._text)

    def _add_text(self, piece: str) -> None:
        start = len(self._text)
        self._text += piece.encode()
        self._pieces += 1
        self._token_ids_end = len(self._token_ids)
        if text := piece.rstrip():
            self._text_end = start + len(text.encode())
            self._pieces_to_end = self._pieces

    def _add_token_ids(self, array: msgspec.Raw) -> None:
        ids = bytes(array).translate(None, _SPACE)
        if ids in (b"null", b"[]"):
            return
        zeros = ids[1:-1].translate(_ZEROS)
        is_array = ids.startswith(b"[") and not zeros.translate(None, b"0,")
        if not is_array or b"0" * (_MAX_DIGITS + 1) in zeros:
            raise NotContinuableError("the stream has token ids that are no numbers of tokens")
        if self._token_ids:
            self._token_ids += b","
        self._token_ids += ids[1:-1]
