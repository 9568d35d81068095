"""What the headers of images and clips say, true ones and others."""

import base64
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ImageTokens
from tessera.domain.model.media_tokens import (
    CLIP_TOKENS,
    IMAGE_TOKENS,
    audio_tokens,
    image_tokens,
    video_tokens,
)


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0" * 40
    )


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\xf7\0\0" + b"\0" * 40


def jpeg(width: int, height: int, *, profile_bytes: int = 3000) -> bytes:
    profile = b"\xff\xe1" + struct.pack(">H", profile_bytes + 2) + b"e" * profile_bytes
    frame = b"\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width) + b"\3" + b"\0" * 9
    return b"\xff\xd8" + profile + b"\xff\xdb\0\x04qq" + frame + b"\0" * 40


def webp(kind: bytes, width: int, height: int) -> bytes:
    body = {
        b"VP8 ": b"\0" * 3 + b"\x9d\x01\x2a" + struct.pack("<HH", width, height),
        b"VP8L": b"\x2f" + struct.pack("<I", (height - 1) << 14 | width - 1),
        b"VP8X": b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
    }[kind]
    return (
        b"RIFF" + struct.pack("<I", 99) + b"WEBP" + kind + struct.pack("<I", 50) + body + b"\0" * 40
    )


def wave(seconds: float, bytes_per_second: int = 32_000) -> bytes:
    data = b"\0" * int(seconds * bytes_per_second)
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, bytes_per_second, 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + data


def flac(seconds: int, rate: int = 44_100) -> bytes:
    bits = rate << 44 | 1 << 41 | 15 << 36 | seconds * rate
    return b"fLaC\0\0\0\x22" + b"\x10\0\x10\0" + b"\0" * 6 + bits.to_bytes(8, "big") + b"\0" * 16


def mp4(seconds: int, *, version: int = 0, size: int = 1000, at_end: bool = False) -> bytes:
    times = struct.pack(">QQIQ" if version else ">IIII", 0, 0, 600, seconds * 600)
    header = b"\0\0\0\x6cmvhd" + bytes((version, 0, 0, 0)) + times + b"\0" * 80
    movie = struct.pack(">I", 8 + len(header)) + b"moov" + header
    start, pictures = b"\0\0\0\x18ftypisom" + b"\0" * 12, b"p" * size
    pictures = struct.pack(">I4sQ", 1, b"mdat", 16 + size) + pictures
    return start + (pictures + movie if at_end else movie + pictures)


def url(data: bytes, kind: str = "image/png") -> bytes:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}".encode()


IMAGES: Mapping[str, Callable[[int, int], bytes]] = {
    "PNG": png,
    "GIF": gif,
    "JPEG": jpeg,
    "VP8": partial(webp, b"VP8 "),
    "VP8L": partial(webp, b"VP8L"),
    "VP8X": partial(webp, b"VP8X"),
}


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(640, 480, 1200), (33, 500, 256), (1024, 1008, 4032), (4000, 3000, IMAGE_TOKENS)],
)
def test_an_image_counts_by_its_pixels(form: str, width: int, height: int, tokens: int) -> None:
    data = IMAGES[form](width, height)
    for text in (url(data), base64.b64encode(data), url(data).replace(b"/", b"\\/")):
        assert image_tokens(text) == image_tokens(memoryview(text)) == tokens


QWEN = ImageTokens(max_tokens=16_384, pixels_per_side=28)


@pytest.mark.parametrize(
    ("bounds", "width", "height", "tokens"),
    [
        # Qwen2.5-VL has 999 after rounding to 37 x 27.
        (QWEN, 1024, 768, 37 * 28),
        (QWEN, 4000, 3000, 143 * 108),
        (QWEN, 8000, 6000, 16_384),
        (QWEN, 28, 28, 256),
        (ImageTokens(max_tokens=256), 28, 28, 256),
        (ImageTokens(max_tokens=256), 4000, 3000, 256),
        (ImageTokens(max_tokens=64), 4000, 3000, 64),
        # Llama 4 has 13 tiles of 144.
        (ImageTokens(max_tokens=2448), 1024, 768, 2448),
        (ImageTokens(max_tokens=2448), 336, 336, 441),
    ],
)
def test_an_image_counts_by_what_its_model_says(
    bounds: ImageTokens, width: int, height: int, tokens: int
) -> None:
    assert image_tokens(url(png(width, height)), bounds) == tokens


def test_an_image_without_a_size_counts_within_what_its_model_says() -> None:
    for most, tokens in ((256, 256), (IMAGE_TOKENS, IMAGE_TOKENS), (16_384, IMAGE_TOKENS)):
        assert image_tokens(url(b"%PDF-1.7"), ImageTokens(max_tokens=most)) == tokens


def test_a_photo_with_large_profiles_counts_by_its_pixels() -> None:
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + b"p" * 60_000
    assert image_tokens(url(b"\xff\xd8" + 3 * profile + jpeg(640, 480)[2:])) == 1200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        png(0, 9),
        png(9, 0),
        png(2**32 - 1, 2**32 - 1),
        gif(0, 0),
        jpeg(0, 0),
        b"\xff\xd8" + b"\xff\xe1\0\0" * 100_000,
        b"\xff\xd8" + b"\xff\xe1\0\x02" * 100_000,
        b"\xff\xd8\xff",
        b"RIFF    WEBPVP8X",
        b"RIFF    WEBPNONE" + b"\0" * 99,
        b"%PDF-1.7" + b"x" * 999,
    ],
)
def test_an_image_without_a_size_counts_as_the_largest(data: bytes) -> None:
    assert image_tokens(url(data)) == IMAGE_TOKENS


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (wave(60), 1500),
        (wave(0.1), 25),
        (flac(120), 3000),
        # A container that is not read, as if it were speech of 16 kbit/s.
        (b"ID3\4" + b"\0" * 479_996, 6000),
        (b"OggS" + b"\0" * 8_000_000, CLIP_TOKENS),
        (b"", 25),
        (wave(1, bytes_per_second=2)[:28] + b"\0\0\0\0" + b"\0" * 40_000, 500),
    ],
)
def test_a_sound_counts_by_its_seconds(data: bytes, tokens: int) -> None:
    assert audio_tokens(base64.b64encode(data)) == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (mp4(10), 7680),
        (mp4(10, version=1), 7680),
        (mp4(10, size=500_000, at_end=True), 7680),
        (mp4(3600), CLIP_TOKENS),
        (mp4(0), 768),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 200_000, 7680),
        (b"\0\0\0\x18ftypisom" + b"mvhd" + b"\0" * 2, 768),
    ],
)
def test_a_film_counts_by_its_seconds(data: bytes, tokens: int) -> None:
    assert video_tokens(url(data, "video/mp4")) == pytest.approx(tokens, rel=0.02)


@given(
    st.binary(max_size=300)
    | st.builds(
        lambda head, rest: url(head + rest),
        st.sampled_from(
            [png(9, 9)[:20], gif(9, 9)[:8], jpeg(9, 9)[:9], wave(1)[:30], flac(1)[:24], mp4(1)[:60]]
        ),
        st.binary(max_size=300),
    )
)
def test_no_header_counts_more_than_none_and_none_fails(text: bytes) -> None:
    assert 0 < image_tokens(text) <= IMAGE_TOKENS
    assert 0 < audio_tokens(text) <= CLIP_TOKENS
    assert 0 < video_tokens(text) <= CLIP_TOKENS


def test_a_large_file_is_read_at_its_ends_alone() -> None:
    text = url(b"\xff\xd8" + b"\xff\xe1\xff\xff" + b"\xff" * 24_000_000)
    began = time.process_time()
    for tokens in (image_tokens, audio_tokens, video_tokens):
        tokens(text)
    assert time.process_time() - began < 0.05
