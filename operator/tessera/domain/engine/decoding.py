"""Who decodes: the blocks that they begin and the tokens that are their last, by the beat.

Every decoding request gets one token in every beat, so both follow from the beat in which it
joined.
"""

import heapq

from tessera.domain.engine.sequence import Sequence
from tessera.domain.engine_requests import Allocator, Limits


class Decoding:
    """The decoding requests of one engine."""

    def __init__(self, limits: Limits) -> None:
        self.beat = 0
        self._size = limits.block_size
        self._paged = limits.allocator is Allocator.PAGED
        """Whether a request takes blocks as it grows."""
        self._growing = [0] * limits.block_size
        """How many begin a block, by the beat's place in a block's turn."""
        self._ending: dict[int, dict[int, Sequence]] = {}
        """By the beat of their last token."""
        self._ends: list[int] = []
        """A heap of these beats; some may be gone."""

    def join(self, sequence: Sequence) -> None:
        """Its input is complete: it gets a token in the present beat and every later one."""
        sequence.zero = self.beat - sequence.emitted - 1
        if self._paged:
            self._growing[self._turn(sequence)] += 1
        last = sequence.last_beat
        ending = self._ending.get(last)
        if ending is None:
            ending = self._ending[last] = {}
            heapq.heappush(self._ends, last)
        ending[sequence.request.id] = sequence

    def leave(self, sequence: Sequence) -> int:
        """It decodes no longer: the tokens that were computed for it beyond its last one."""
        if self._paged:
            self._growing[self._turn(sequence)] -= 1
        ending = self._ending.get(sequence.last_beat)
        if ending is not None:
            ending.pop(sequence.request.id, None)
            if not ending:
                del self._ending[sequence.last_beat]
        sequence.emitted = min(self.beat - sequence.zero, sequence.request.output_tokens)
        return self.beat - sequence.zero - sequence.emitted

    def growth(self, beats: int) -> int:
        """Blocks that are begun within the next beats."""
        size, growing = self._size, self._growing
        start = (self.beat + 1) % size
        if beats == 1:
            return growing[start]
        turns, rest = divmod(beats, size)
        begun = sum(growing[start : start + rest]) + sum(growing[: max(0, start + rest - size)])
        return begun + turns * sum(growing) if turns else begun

    def next_end(self) -> int:
        """The beat of the next last token; somebody decodes."""
        while self._ends[0] not in self._ending:
            heapq.heappop(self._ends)
        return self._ends[0]

    def ended(self) -> list[Sequence]:
        """Those whose last token has come; they still have to leave."""
        gone: list[Sequence] = []
        ends = self._ends
        while ends and ends[0] <= self.beat:
            gone += self._ending.pop(heapq.heappop(ends), {}).values()
        return gone

    def _turn(self, sequence: Sequence) -> int:
        """When it begins a block: its cache then holds one token more than whole blocks.

        After a step it holds the prompt and what was emitted less the newest token.
        """
        return (sequence.zero - sequence.request.prompt_tokens + 2) % self._size
