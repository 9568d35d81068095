"""Where an answer goes: today to its client; other sinks may hold or copy it."""

from typing import Protocol

from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.refusals import Headers


class AnswerSink(Protocol):
    """Takes one answer by plain calls, so that no part of a stream waits for a task.

    Its source calls `begin` and `part`, or `whole`, and at last `end`.
    """

    @property
    def unread_bytes(self) -> int:
        """Return those of a stream that wait for who reads it; the source counts them as held."""

    def begin(self, headers: Headers) -> bool:
        """Begin a stream; False if it has begun, so that the headers are not read."""

    def part(self, data: bytes) -> bool:
        """Take whole events of a stream; False if it takes no more before it is `drained`."""

    def whole(self, body: bytes) -> None:
        """Take an answer that is no stream."""

    def end(self, counts: TokenCounts | None) -> None:
        """Take the end of the answer, and what its source counted."""

    def interrupted(self) -> None:
        """Wait for another source that goes on with a stream."""

    async def drained(self) -> None:
        """Wait while who reads it is slow; before `begin` too."""


def begun(sink: AnswerSink, headers: Headers, shown: Headers, part: bytes) -> bytes:
    """Begin a stream, and return its first part.

    Comments that went before may have taken the headers with them: then that part has comments with
    those that are `shown` in any case.
    """
    if sink.begin(headers):
        return part
    return b"%b\n%b" % (b"".join([b": %b: %b\n" % line for line in shown]), part)
