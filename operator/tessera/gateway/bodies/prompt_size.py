"""How many tokens a request may give an engine to read, counted without an object per list item."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from tessera.api.text import counted
from tessera.domain.model.media_tokens import CLIP_TOKENS, IMAGE_TOKENS
from tessera.gateway.bodies.json_values import MAX_TEXTS, first_items
from tessera.gateway.refusals import invalid_request

# Images and clips of one request.
MAX_MEDIA = 2048
# Most languages take 4 to 6 bytes a token, code less.
_BYTES_PER_TOKEN = 3
# Instructions and special tokens of a chat template, which is not in the body.
_TEMPLATE_TOKENS = 1024
# Of models that offer no larger one, where that of a model is not known.
LARGEST_CONTEXT = 2**20
# What an engine may count beyond these: Qwen2.5-VL 16,384 of an image by default.
_MEDIA_EXCESS = 4

_PART_BYTES = 2**16
# Names are looked for at each quotation mark of a large body while it has few, and one in so many
# bytes at most: else a pattern finds them faster.
_FEW_QUOTES, _LONG_TEXT_BYTES = 64, 1024
# By which a value is found again in the one around it.
_SOUGHT_BYTES = 64
_FIRST_PART_BYTES = 512
_MEDIA_TOKENS = {
    b"image_url": IMAGE_TOKENS,
    b"image_embeds": IMAGE_TOKENS,
    b"image_pil": IMAGE_TOKENS,
    b"file_data": IMAGE_TOKENS,
    b"audio_url": CLIP_TOKENS,
    b"audio_embeds": CLIP_TOKENS,
    b"video_url": CLIP_TOKENS,
    b"video_embeds": CLIP_TOKENS,
    b"input_audio": CLIP_TOKENS,
    b"prompt_embeds": 1,
}
# Without a field of their own. Tensors of a prompt have more bytes than tokens.
_TYPES = {b"image": IMAGE_TOKENS, b"document": IMAGE_TOKENS, b"prompt_embeds": 1}
_MEDIA = re.compile(
    rb'"(?:image(?:_(?:url|embeds|pil))?|(?:audio|video)_(?:url|embeds)|input_audio|prompt_embeds'
    rb'|file_data|document)"'
)
# Letters and `_` need no escape, but may hide a name: of one, all from the first such escape on.
_ESCAPED_LETTER = rb"\\u00(5[fF]|6[1-9a-fA-F]|7[0-9aA])"
_HIDDEN = re.compile(rb'%b(?:[a-z_]|%b){0,16}+"?' % (_ESCAPED_LETTER, _ESCAPED_LETTER))
_ESCAPE = re.compile(_ESCAPED_LETTER)
_LONGEST_NAME = max(map(len, _MEDIA_TOKENS))
# Around a name that are looked through for a colon.
_MAX_SPACES = 64

_ITEM = re.compile(rb'["{]|\[[^\[\]{}"]*+\]\Z')
_FLAT_ITEM = re.compile(rb'"|\[[^\[\]{}"]*+\]\Z')
_SEVERAL = re.compile(rb'\[\s*(?=["\[{])')
_TOKEN_IDS = re.compile(rb"\[[\s\[\]0-9,-]*+")


class InlineMedia(NamedTuple):
    """An image or a clip that is itself in a body, or an image whose URL the model bounds."""

    text: memoryview
    """A URL or base64, in its quotation marks."""
    tokens: int
    """By its header, and by what the model says of images."""
    counted_tokens: int
    """Those that it counts by the name of its field or of its type."""

    @property
    def text_bytes(self) -> int:
        """Return the bytes of text of as many tokens."""
        return _BYTES_PER_TOKEN * self.tokens


# Those of a body, by the field of the body and in their order.
Media: TypeAlias = Mapping[str, Sequence[InlineMedia]]
NO_MEDIA: Media = {}


class PromptSize(NamedTuple):
    """What an engine has to read for one request.

    A tokenizer makes at most one token of a byte, and reads no text that is longer than the
    model's context. The estimate, which is reserved and which the queue is fair by, takes
    3 bytes a token; usage beyond the bound is no engine's to claim.

    - chat, messages, responses, tokenize: the body is one text;
    - completions: each prompt is a text. `n`, `best_of` and beams multiply answers alone: an engine
      counts a prompt once;
    - embeddings, pooling: each input is a text, and the rest of the body counts as well;
    - rerank, score: each pair is a text, since cross-encoders read the query, and perhaps an
      instruction, once per document;
    - each image counts 4,096 tokens, or the model's most if that is less, each clip 32,768: what is
      in the body counts by its header instead, and none of its bytes is text.
    """

    texts: int
    size_bytes: int
    """Of all texts together; a token that is given by its number has those that stand for one."""
    media_tokens: int = 0
    escape_bytes: int = 0
    """About what escapes as `\\u0416` take more than their characters."""
    saved_media_tokens: int = 0
    """What images and clips would count more whose headers say how large they are."""

    def estimate(self, context: int | None) -> int:
        """Return about how many tokens it has, rather more than fewer."""
        tokens = self.size_bytes // _BYTES_PER_TOKEN + self.texts + self.media_tokens
        return tokens if context is None else min(tokens, self.texts * context)

    @property
    def text_bytes(self) -> int | None:
        """Return its bytes in UTF-8 where it is text alone."""
        return None if self.media_tokens else self.size_bytes - self.escape_bytes

    def bound(self, context: int | None) -> int:
        """Return how many tokens it has at most."""
        media_tokens = _MEDIA_EXCESS * (self.media_tokens + self.saved_media_tokens)
        tokens = self.size_bytes + self.texts * _TEMPLATE_TOKENS + media_tokens
        return min(tokens, self.texts * (context or LARGEST_CONTEXT))

    def with_inline(self, media: Iterable[InlineMedia]) -> "PromptSize":
        """Return the size without the bytes of these images and clips, which counted as text."""
        media = tuple(media)
        if not media:
            return self
        size_bytes, saved_tokens = self.size_bytes, 0
        for each in media:
            size_bytes -= len(each.text)
            saved_tokens += each.counted_tokens - each.tokens
        return self._replace(
            size_bytes=max(size_bytes, 0),
            media_tokens=max(self.media_tokens - saved_tokens, 1),
            saved_media_tokens=max(saved_tokens, 0),
        )


def of_conversation(body: bytes) -> PromptSize:
    """Return the size of a body that is one text, with images and clips."""
    return PromptSize(1, len(body), _media_tokens(body), _escape_bytes(memoryview(body)))


def of_inputs(value: memoryview, field: str, body: bytes) -> PromptSize:
    """Return the size of a body with texts, lists of tokens or objects in a field.

    What else is in it counts too, since an engine may read a conversation beside them instead.

    Raises RequestError.
    """
    texts, size_bytes = _texts(value, field, _ITEM)
    return of_conversation(body)._replace(
        texts=texts, size_bytes=size_bytes + len(body) - len(value)
    )


def of_texts(value: memoryview, field: str, *, structured: bool = False) -> PromptSize:
    """Return the size of a field: a text, a list of tokens, or a list of either.

    Where it may be `structured`, it may have objects instead of texts.

    Raises RequestError.
    """
    texts, size_bytes = _texts(value, field, _ITEM if structured else _FLAT_ITEM)
    media_tokens = _media_tokens(bytes(value)) if structured else 0
    return PromptSize(texts, size_bytes, media_tokens, _escape_bytes(value))


def of_pairs(queries: PromptSize, documents: PromptSize, instruction_bytes: int) -> PromptSize:
    """Return the size of all pairs, each with the instruction: one query with each document, or as
    many of both.
    """
    pairs = max(queries.texts, documents.texts)
    size_bytes, media_tokens, escape_bytes, saved_tokens = pairs * instruction_bytes, 0, 0, 0
    for side in (queries, documents):
        times = pairs if side.texts == 1 else 1
        size_bytes += side.size_bytes * times
        media_tokens += side.media_tokens * times
        escape_bytes += side.escape_bytes * times
        saved_tokens += side.saved_media_tokens * times
    return PromptSize(pairs, size_bytes, media_tokens, escape_bytes, saved_tokens)


def condense(value: memoryview, media: Sequence[InlineMedia], most: int) -> tuple[bytes, int]:
    """Return so many bytes at most of a value, and all that it has.

    Each of its images and clips has as many bytes as text of as many tokens, which are those of no
    other one.
    """
    condensed, start, size = bytearray(), 0, len(value)
    for each in media:
        length = each.text_bytes
        size += length - len(each.text)
        place = _place(value, each.text, start) if len(condensed) < most else None
        if place is not None:
            condensed += value[start:place][:most]
            digest = hashlib.sha256(each.text).digest()
            condensed += (digest * (length // len(digest) + 1))[:length]
            start = place + len(each.text)
    return bytes(condensed + value[start:][:most])[:most], max(size, 0)


def _place(value: memoryview, text: memoryview, start: int) -> int | None:
    """Return where a text is in the value around it, from a place on, without a copy of all."""
    sought, part_bytes = bytes(text[:_SOUGHT_BYTES]), _FIRST_PART_BYTES
    while start < len(value):
        at = bytes(value[start : start + part_bytes + len(sought)]).find(sought)
        if at >= 0:
            return start + at
        start += part_bytes
        part_bytes = min(2 * part_bytes, _PART_BYTES)
    return None


def condensed_sizes(values: Sequence[memoryview], media: Sequence[InlineMedia]) -> list[int]:
    """Return the bytes of parts of a body, one behind the other, with these images and clips.

    Each of them has as many bytes as in `condense`.
    """
    sizes, left = list[int](), [*reversed(media)]
    for value in values:
        start, size = 0, len(value)
        while left and (place := _place(value, left[-1].text, start)) is not None:
            each = left.pop()
            size += each.text_bytes - len(each.text)
            start = place + len(each.text)
        sizes.append(size)
    return sizes


def _texts(value: memoryview, field: str, item: re.Pattern[bytes]) -> tuple[int, int]:
    """Return how many texts there are, and their bytes."""
    size_bytes = len(value)
    if _TOKEN_IDS.fullmatch(value) is not None:
        size_bytes = _BYTES_PER_TOKEN * (_occurrences(value, b",") + 1)
    texts = 1
    if bytes(value[:1]) == b"{":
        # The parts of one object may be scored one by one.
        texts = _occurrences(value, b"{")
    elif _SEVERAL.match(value) is not None:
        items = first_items(value)
        if not all(map(item.match, items)):
            raise invalid_request(
                f"{field}: expected a text, a list of tokens, or a list of either", field
            )
        texts = len(items)
    if texts > MAX_TEXTS:
        raise invalid_request(
            f"{field}: expected at most {counted(MAX_TEXTS, 'text')} in one request", field
        )
    return texts, size_bytes


def _occurrences(value: memoryview, byte: bytes) -> int:
    """Count a byte, without a copy of the whole value."""
    parts = range(0, len(value), _PART_BYTES)
    return sum(bytes(value[start : start + _PART_BYTES]).count(byte) for start in parts)


def _escape_bytes(value: memoryview) -> int:
    """Return what escapes take more than their characters, as its beginning has them."""
    beginning = bytes(value[:_PART_BYTES])
    # Most texts have no backslash at all, which is found far faster than two bytes.
    escapes = beginning.count(b"\\u") if b"\\" in beginning else 0
    if not escapes:
        return 0
    # One of six bytes is a character of two bytes below U+0800, and of three from there on.
    of_two = sum(beginning.count(b"\\u0%d" % digit) for digit in range(8))
    return (3 * escapes + of_two) * len(value) // len(beginning)


def _media_tokens(body: bytes) -> int:
    """Return the tokens of images and clips.

    Raises RequestError.
    """
    tokens = 0
    for number, (start, end) in enumerate(_media_names(body)):
        # The type of a part may have the name of one of its fields.
        if number == 2 * MAX_MEDIA:
            raise invalid_request(
                f"the body: expected at most {MAX_MEDIA} images and clips, and letters as they are "
                "instead of escapes like `\\u0061`"
            )
        name = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), body[start + 1 : end - 1])
        before = body[max(start - _MAX_SPACES, 0) : start].rstrip()[-1:]
        after = body[end : end + _MAX_SPACES].lstrip()[:1]
        # Among spaces alone there may be a colon farther away.
        if after in b":":
            tokens += _MEDIA_TOKENS.get(name, 0)
        elif before in b":":
            tokens += _TYPES.get(name, 0)
    return tokens


def _media_names(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield the places of all texts that may be names of images and clips."""
    start, quotes, is_large = 0, 0, len(body) > _PART_BYTES
    # In long texts, a quotation mark is found ten times faster than by the pattern.
    while is_large and start >= 0 and quotes <= _FEW_QUOTES + start // _LONG_TEXT_BYTES:
        quotes += 1
        name = _MEDIA.match(body, start)
        if name is not None:
            yield name.span()
        start = body.find(b'"', start + 1 if name is None else name.end())
    for name in _MEDIA.finditer(body, start) if start >= 0 else ():
        yield name.span()
    # Most bodies have no backslash at all, which is found a hundred times faster.
    if b"\\" in body and b"\\u00" in body:
        for rest in _HIDDEN.finditer(body):
            first = max(rest.start() - _LONGEST_NAME, 0)
            yield max(body.rfind(b'"', first, rest.start()), first), rest.end()
