"""The recorded load of a service, in spans of ten minutes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import overload

from typing_extensions import override

SPAN = timedelta(minutes=10)
# As far as Prometheus is asked.
LONGEST = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpan:
    """The requests that came in ten minutes."""

    end: datetime
    rate: float
    """Requests per second."""
    input_tokens: float
    """Mean tokens of a prompt."""
    output_tokens: float
    """Mean tokens of an answer."""
    input_variation: float
    """Squared coefficient of variation of prompts."""
    resident_tokens: float
    """Cached tokens of a request while it runs, on average over the time that requests run."""
    cached_share: float = 0.0
    """Share of the prompts' tokens that prefix caches had."""


# The end in seconds, and the other fields.
_PACKED = Struct("<q6f")


class PackedSpans(Sequence[LoadSpan]):
    """Spans that take 32 bytes each: those of a week are a thousand, of each service of a fleet.

    Their numbers have the 7 digits of a float of 32 bits.
    """

    __slots__ = ("_bytes",)

    def __init__(self, spans: Iterable[LoadSpan]) -> None:
        self._bytes = b"".join(map(_packed, spans))

    @override
    def __len__(self) -> int:
        return len(self._bytes) // _PACKED.size

    @override
    def __iter__(self) -> Iterator[LoadSpan]:
        return (_unpacked(*numbers) for numbers in _PACKED.iter_unpack(self._bytes))

    @overload
    def __getitem__(self, index: int) -> LoadSpan: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LoadSpan, ...]: ...

    @override
    def __getitem__(self, index: int | slice) -> LoadSpan | tuple[LoadSpan, ...]:
        offsets = range(0, len(self._bytes), _PACKED.size)[index]
        if isinstance(offsets, int):
            return _unpacked(*_PACKED.unpack_from(self._bytes, offsets))
        return tuple(_unpacked(*_PACKED.unpack_from(self._bytes, offset)) for offset in offsets)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedSpans) and self._bytes == other._bytes

    @override
    def __hash__(self) -> int:
        return hash(self._bytes)


def _packed(span: LoadSpan) -> bytes:
    return _PACKED.pack(
        round(span.end.timestamp()),
        span.rate,
        span.input_tokens,
        span.output_tokens,
        span.input_variation,
        span.resident_tokens,
        span.cached_share,
    )


def _unpacked(end: int, *numbers: float) -> LoadSpan:
    rate, prompt, answer, variation, resident, cached = numbers
    return LoadSpan(
        end=datetime.fromtimestamp(end, UTC),
        rate=rate,
        input_tokens=prompt,
        output_tokens=answer,
        input_variation=variation,
        resident_tokens=resident,
        cached_share=cached,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadHistory:
    """What was recorded of a service: spans without requests are there, gaps are not."""

    read_at: datetime
    spans: Sequence[LoadSpan] = ()
    """Oldest first."""
