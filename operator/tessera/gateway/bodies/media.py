"""Images and clips of a request: an engine fetches them from hosts that its service lists alone.

What an engine is asked to fetch, it fetches from within the cluster. Only what vLLM reads as media
is looked at: the parts of messages, of their tool results and of texts that are scored.
"""

import re
from collections.abc import Iterator, Mapping

import msgspec

from tessera.api.text import counted
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.model.media_tokens import (
    CLIP_TOKENS,
    IMAGE_TOKENS,
    MEDIA_FIELDS,
    image_tokens,
)
from tessera.gateway.bodies.json_values import MAX_TEXTS, decode, first_items
from tessera.gateway.bodies.prompt_size import InlineMedia
from tessera.gateway.refusals import foreign_media, invalid_request, unlisted_field

# Lists and objects around a part, those of a batch of conversations with tool results included.
_MAX_DEPTH = 8
# Messages, parts and what else is in these lists.
_MAX_VALUES = 16_384
# A longer one is no URL but a file.
_MAX_URL_BYTES = 8192
# Also if all its letters are escapes.
_MAX_TYPE_BYTES = 256

_NONE = msgspec.Raw()
_URLS = ("image_url", "video_url", "audio_url", "source")
_DATA_FIELDS = ("input_audio", "source", "file", "file_data")
# Tensors, in base64 or as several of them by name, with the tokens that they count.
_TENSORS = {
    "image_embeds": IMAGE_TOKENS,
    "video_embeds": CLIP_TOKENS,
    "audio_embeds": CLIP_TOKENS,
}
# Engines keep what they made of media under this name, for every request that gives it again, and
# a tensor of a wrong shape may end them.
_UNSHARED = ("uuid", *_TENSORS)
# A part of this type has a tensor in another field.
_EMBEDS = "prompt_embeds"
_NESTED = ("content", "output")
_TYPE = "type"
_READ = (*dict.fromkeys((*_URLS, *_DATA_FIELDS)), *_UNSHARED, *_NESTED, _TYPE, _EMBEDS)

_Part = msgspec.defstruct("_Part", [(name, msgspec.Raw, _NONE) for name in _READ], gc=False)
_part = msgspec.json.Decoder(_Part)


class _Reference(msgspec.Struct, gc=False):
    url: msgspec.Raw = _NONE
    data: msgspec.Raw = _NONE
    file_data: msgspec.Raw = _NONE
    type: msgspec.Raw = _NONE


_reference = msgspec.json.Decoder(_Reference)
_text = msgspec.json.Decoder(str)
_DATA = re.compile(rb'"data:', re.IGNORECASE)
# Nothing that two readers could take for different hosts: no user, no escape, no space.
_URL = re.compile(r"https?://([a-z0-9.-]+)(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?", re.IGNORECASE)


def read_media(
    fields: Mapping[str, memoryview], model: OfferedModel
) -> Mapping[str, list[InlineMedia]]:
    """Return the images and clips in the values of some fields, in their order.

    Raises RequestError, which names the field, for what an engine would fetch from a host that its
    service does not list.
    """
    inline: dict[str, list[InlineMedia]] = {}
    seen = 0
    for name, field in fields.items():
        media = inline[name] = []
        pending = [(field, 0)]
        while pending:
            value, depth = pending.pop()
            is_list = bytes(value[:1]) == b"["
            if not is_list and bytes(value[:1]) != b"{":
                continue
            if depth > _MAX_DEPTH:
                raise invalid_request("the body: its messages are nested too deep")
            if is_list:
                nested = first_items(value)
                seen += len(nested)
                if len(nested) > MAX_TEXTS or seen > _MAX_VALUES:
                    raise invalid_request(
                        f"the body: expected at most {MAX_TEXTS} messages or parts in a list, "
                        f"images and clips among them, and {_MAX_VALUES} in all"
                    )
            else:
                part = decode(_part, value)
                media += _read_part(part, model)
                nested = [getattr(part, name) for name in _NESTED]
            pending += [(memoryview(each), depth + 1) for each in reversed(nested)]
    return inline


def _read_part(part: msgspec.Struct, model: OfferedModel) -> Iterator[InlineMedia]:
    for name in _URLS:
        reference = memoryview(getattr(part, name))
        if bytes(reference[:1]) == b"{":
            reference = memoryview(decode(_reference, reference).url)
        elif name == "source":
            continue
        if _DATA.match(reference):
            yield _sized(name, reference, part, model)
        elif bytes(reference[:1]) == b'"':
            _check_url(name, reference, model)
            if _counts_less(name, model):
                yield _sized(name, reference, part, model)
    yield from _data(part, model)
    if model.is_shared:
        _check_unshared(part)


def _counts_less(name: str, model: OfferedModel) -> bool:
    """Return whether an image without a known header takes less than the name of its field says."""
    is_image = MEDIA_FIELDS[name][0] is image_tokens
    return is_image and model.image is not None and model.image.max_tokens < IMAGE_TOKENS


def _data(part: msgspec.Struct, model: OfferedModel) -> Iterator[InlineMedia]:
    for name in _DATA_FIELDS:
        data = memoryview(getattr(part, name))
        if bytes(data[:1]) == b"{":
            data = _data_of(decode(_reference, data), name)
        if bytes(data[:1]) == b'"':
            yield _sized(name, data, part, model)
    for name, tokens in _TENSORS.items():
        tensor = memoryview(getattr(part, name))
        if bytes(tensor[:1]) in (b'"', b"{"):
            yield InlineMedia(tensor, tokens, tokens)


def _check_unshared(part: msgspec.Struct) -> None:
    for name in _UNSHARED:
        if bytes(memoryview(getattr(part, name))[:5]) not in (b"", b"null"):
            raise unlisted_field(name)
    if getattr(part, _EMBEDS) is not _NONE or _text_of(getattr(part, _TYPE)) == _EMBEDS:
        raise unlisted_field(_EMBEDS)


def _data_of(reference: _Reference, name: str) -> memoryview:
    """Return the base64 of an object; nothing where it has a plain text, which is one to read."""
    if name == "source" and _text_of(reference.type) != "base64":
        return memoryview(b"")
    return memoryview(reference.file_data if name == "file" else reference.data)


def _sized(name: str, data: memoryview, part: msgspec.Struct, model: OfferedModel) -> InlineMedia:
    tokens_of, counted_tokens = MEDIA_FIELDS[name]
    text = data[1:-1]
    tokens = image_tokens(text, model.image) if tokens_of is image_tokens else tokens_of(text)
    if name == "source" and _text_of(getattr(part, _TYPE)) not in ("image", "document"):
        counted_tokens = 0
    return InlineMedia(data, tokens, counted_tokens)


def _text_of(value: msgspec.Raw) -> str:
    """Return a short text; empty for any other value."""
    text = memoryview(value)
    is_short = bytes(text[:1]) == b'"' and len(text) <= _MAX_TYPE_BYTES
    return decode(_text, text) if is_short else ""


def _check_url(name: str, text: memoryview, model: OfferedModel) -> None:
    if len(text) > _MAX_URL_BYTES:
        raise invalid_request(
            f"{name}: a URL has at most {counted(_MAX_URL_BYTES, 'byte')}; data begin with `data:`",
            name,
        )
    url = decode(_text, text)
    place = _URL.fullmatch(url)
    # What providers fetch, they fetch from outside the cluster.
    if not url or url[:5].lower() == "data:" or model.outside is not None:
        return
    if place is None or place[1].lower() not in model.media_domains:
        raise foreign_media(name, url, model)
