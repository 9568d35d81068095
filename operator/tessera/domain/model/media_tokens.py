"""How many tokens an image or a clip takes that a request has as base64, as its header says.

A header is written by the sender: only its first bytes are read, and what they say is bounded
as if they said nothing. What engines count afterwards replaces all of it.
"""

import binascii
import re
import struct
from collections.abc import Callable, Mapping

from tessera.api.model_files import ImageTokens

# Where a header says nothing. Pixtral takes 4,096 tokens for its largest image and InternVL 3,328.
IMAGE_TOKENS = 4096
# Qwen2.5-VL takes 24,576 for its longest video; Qwen2-Audio takes 25 for a second, so these are 20
# minutes.
CLIP_TOKENS = 32_768
# Where the files of a model say nothing: Pixtral has a token for 16 pixels of each side, Qwen2.5-VL
# one for 28; Gemma 3 has 256 for any.
_PIXELS = 16
_LEAST_IMAGE_TOKENS = 256
_AUDIO_TOKENS_PER_SECOND = 25
# Engines sample two frames a second, of which two make 768 tokens at most.
_VIDEO_TOKENS_PER_SECOND = 768
# Of a container that is not read: speech has 2 to 16 kB a second, films far more.
_AUDIO_BYTES_PER_SECOND = 2000
_VIDEO_BYTES_PER_SECOND = 20_000

_HEAD_BYTES = 64
_ESCAPED_BYTES = 2**18
_URL = re.compile(rb"data:[^,]{0,256},", re.IGNORECASE)
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Segments of a JPEG, or boxes of an MP4, that are passed over.
_MAX_SEGMENTS = 32


def image_tokens(text: bytes | memoryview, bounds: ImageTokens | None = None) -> int:
    """Return the tokens of an image, given by its data URL or its base64.

    The bounds are those of the model that reads it. A header may say more than an image without
    one counts, up to these.
    """
    most = IMAGE_TOKENS if bounds is None else bounds.max_tokens
    size = _image_size(text)
    if size is None:
        return min(most, IMAGE_TOKENS)
    width, height = size
    side = (bounds and bounds.pixels_per_side) or _PIXELS
    tokens = -(-width // side) * -(-height // side)
    return min(max(_LEAST_IMAGE_TOKENS, tokens), most)


def audio_tokens(text: bytes | memoryview) -> int:
    """Return the tokens of a sound, given by its data URL or its base64."""
    head = _decoded(_base64_of(text))
    seconds = _wave_seconds(head, len(text) * 3 // 4) or _flac_seconds(head)
    if not seconds:
        seconds = len(text) * 3 / 4 / _AUDIO_BYTES_PER_SECOND
    return _clip_tokens(seconds, _AUDIO_TOKENS_PER_SECOND)


def video_tokens(text: bytes | memoryview) -> int:
    """Return the tokens of a film, given by its data URL or its base64."""
    seconds = _mp4_seconds(text)
    if not seconds:
        seconds = len(text) * 3 / 4 / _VIDEO_BYTES_PER_SECOND
    return _clip_tokens(seconds, _VIDEO_TOKENS_PER_SECOND)


# What sizes an image or a clip, by the field of a part that has it, and what it counts at most.
MEDIA_FIELDS: Mapping[str, tuple[Callable[[bytes | memoryview], int], int]] = {
    "image_url": (image_tokens, IMAGE_TOKENS),
    "video_url": (video_tokens, CLIP_TOKENS),
    "audio_url": (audio_tokens, CLIP_TOKENS),
    "input_audio": (audio_tokens, CLIP_TOKENS),
    "source": (image_tokens, IMAGE_TOKENS),
    "file": (image_tokens, IMAGE_TOKENS),
    "file_data": (image_tokens, IMAGE_TOKENS),
}


def _clip_tokens(seconds: float, tokens_per_second: int) -> int:
    return int(min(max(seconds, 1) * tokens_per_second, CLIP_TOKENS))


def _base64_of(text: bytes | memoryview) -> memoryview:
    """Return what follows the head of a data URL, or all."""
    url = _URL.match(text)
    return memoryview(text)[url.end() if url is not None else 0 :]


def _decoded(encoded: memoryview, size: int = _HEAD_BYTES, at: int = 0) -> bytes:
    """Return so many bytes, at a place, of what is encoded; fewer where it has no more."""
    first, rest = divmod(at, 3)
    part = bytes(encoded[4 * first : 4 * (first - (-(size + rest) // 3))]).rstrip(b"=")
    try:
        return binascii.a2b_base64(part[: len(part) // 4 * 4])[rest:]
    except binascii.Error:
        return b""


def _image_size(text: bytes | memoryview) -> tuple[int, int] | None:
    """Return width and height in pixels; None where they are not known."""
    if b"\\" in bytes(text[:_HEAD_BYTES]):
        # Some clients escape each `/`.
        text = bytes(text[:_ESCAPED_BYTES]).replace(b"\\", b"")
    encoded = _base64_of(text)
    head = _decoded(encoded)
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            size: tuple[int, int] | None = struct.unpack_from(">II", head, 16)
        elif head.startswith((b"GIF87a", b"GIF89a")):
            size = struct.unpack_from("<HH", head, 6)
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            size = _webp_size(head)
        elif head.startswith(b"\xff\xd8"):
            size = _jpeg_size(encoded)
        else:
            size = None
    except struct.error:
        return None
    return size if size and all(size) else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", head, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width, height = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
            return width + 1, height + 1
        case _:
            return None


def _jpeg_size(encoded: memoryview) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        # Profiles and previews precede the size.
        segment = _decoded(encoded, 9, at)
        marker, length = struct.unpack_from(">HH", segment)
        if marker >> 8 != 0xFF:
            return None
        if marker & 0xFF in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", segment, 5)
            return width, height
        at += 2 + length
    return None


def _wave_seconds(head: bytes, size: int) -> float | None:
    if not head.startswith(b"RIFF") or head[8:16] != b"WAVEfmt " or len(head) < 32:
        return None
    (bytes_per_second,) = struct.unpack_from("<I", head, 28)
    return size / bytes_per_second if bytes_per_second else None


def _flac_seconds(head: bytes) -> float | None:
    if not head.startswith(b"fLaC") or len(head) < 26:
        return None
    bits = int.from_bytes(head[18:26], "big")
    rate, samples = bits >> 44, bits & 0xF_FFFF_FFFF
    return samples / rate if rate else None


def _mp4_seconds(text: bytes | memoryview) -> float | None:
    encoded = _base64_of(text)
    if _decoded(encoded)[4:8] != b"ftyp":
        return None
    at = 0
    for _ in range(_MAX_SEGMENTS):
        box = _decoded(encoded, 48, at)
        if len(box) < 48:
            return None
        size, name = struct.unpack_from(">I4s", box)
        if name == b"moov" and box[12:16] == b"mvhd":
            form, place = (">IQ", 36) if box[16] else (">II", 28)
            scale, duration = struct.unpack_from(form, box, place)
            return duration / scale if scale else None
        # The pictures of a file that was not made for streams come before its lists.
        (large,) = struct.unpack_from(">Q", box, 8)
        at += max(large if size == 1 else size, 8)
    return None
