"""How many tokens an image or a clip takes that a request has as base64, as its header says.

A header is written by whoever sends it: only its first bytes are read, and what they say is bounded
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

# Profiles and previews precede the size of a JPEG; the lists of an MP4 are at either end.
_HEAD_BYTES = 2**18
_SHORT_BYTES = 64
_URL = re.compile(rb"data:[^,]{0,256},", re.IGNORECASE)
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Segments of a JPEG that are passed over.
_MAX_SEGMENTS = 256


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
    head = _decoded(text, _SHORT_BYTES)
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


def _decoded(text: bytes | memoryview, size: int, *, at_end: bool = False) -> bytes:
    """Return about so many bytes of what is encoded, nothing where it is no base64."""
    url = _URL.match(text)
    start = url.end() if url is not None else 0
    length = -(-size // 3) * 4
    if at_end:
        start = max(start, start + (len(text) - start - length) // 4 * 4)
    # Some clients escape each `/`.
    encoded = bytes(text[start : start + length + 4]).replace(b"\\", b"")
    encoded = encoded.rstrip(b"=")
    try:
        return binascii.a2b_base64(encoded[: len(encoded) // 4 * 4])
    except binascii.Error:
        return b""


def _image_size(text: bytes | memoryview) -> tuple[int, int] | None:
    """Return width and height in pixels; None where they are not known."""
    head = _decoded(text, _SHORT_BYTES)
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            size: tuple[int, int] | None = struct.unpack_from(">II", head, 16)
        elif head.startswith((b"GIF87a", b"GIF89a")):
            size = struct.unpack_from("<HH", head, 6)
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            size = _webp_size(head)
        elif head.startswith(b"\xff\xd8"):
            size = _jpeg_size(_decoded(text, _HEAD_BYTES))
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


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker >> 8 != 0xFF:
            return None
        if marker & 0xFF in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
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
    head = _decoded(text, _HEAD_BYTES)
    if head[4:8] != b"ftyp":
        return None
    # A file that was not made for streams has its lists behind the pictures.
    return _movie_seconds(head) or _movie_seconds(_decoded(text, _HEAD_BYTES, at_end=True))


def _movie_seconds(data: bytes) -> float | None:
    at = data.find(b"mvhd")
    if at < 0 or len(data) < at + 36:
        return None
    form, place = (">IQ", at + 24) if data[at + 4] else (">II", at + 16)
    scale, duration = struct.unpack_from(form, data, place)
    return duration / scale if scale else None
