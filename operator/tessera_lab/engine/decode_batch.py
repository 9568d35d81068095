"""The decoding requests: when each begins a block and when each ends, by the token clock.

Every decoding request gets one token with every tick, so both follow from the tick at which it
joined.
"""

import heapq
import math

from tessera.domain.perf.step import StepTime
from tessera_lab.engine.requests import Allocator, EngineLimits
from tessera_lab.engine.sequence_state import SequenceState


class DecodeBatch:
    """The decoding requests of one engine."""

    def __init__(self, limits: EngineLimits) -> None:
        self.token_clock = 0
        self._block_size = limits.block_size
        self._paged = limits.allocator is Allocator.PAGED
        """Whether a request takes blocks as it grows."""
        self._phase_counts = [0] * limits.block_size
        """Requests by the tick, modulo the block size, at which they begin a block."""
        self._by_last_token: dict[int, dict[int, SequenceState]] = {}
        """Requests by id, by the tick of their last token."""
        self._end_heap: list[int] = []
        """A heap of these ticks; some may have no request any more."""

    def add(self, sequence: SequenceState) -> None:
        """Add a request whose input is complete: it gets a token at this tick and every later."""
        sequence.base_token_clock = self.token_clock - sequence.emitted - 1
        if self._paged:
            self._phase_counts[self._block_phase(sequence)] += 1
        last = sequence.last_token_clock
        same_end = self._by_last_token.get(last)
        if same_end is None:
            same_end = self._by_last_token[last] = {}
            heapq.heappush(self._end_heap, last)
        same_end[sequence.request.id] = sequence

    def remove(self, sequence: SequenceState) -> int:
        """Remove a request; return the tokens that were computed beyond its last one."""
        if self._paged:
            self._phase_counts[self._block_phase(sequence)] -= 1
        same_end = self._by_last_token.get(sequence.last_token_clock)
        if same_end is not None:
            same_end.pop(sequence.request.id, None)
            if not same_end:
                del self._by_last_token[sequence.last_token_clock]
        computed = self.token_clock - sequence.base_token_clock
        sequence.emitted = min(computed, sequence.request.output_tokens)
        return computed - sequence.emitted

    def blocks_needed(self, tokens: int) -> int:
        """Return the blocks that are begun within the next `tokens` ticks."""
        block_size, phase_counts = self._block_size, self._phase_counts
        start = (self.token_clock + 1) % block_size
        if tokens == 1:
            return phase_counts[start]
        cycles, rest = divmod(tokens, block_size)
        block_count = sum(phase_counts[start : start + rest]) + sum(
            phase_counts[: max(0, start + rest - block_size)]
        )
        return block_count + cycles * sum(phase_counts) if cycles else block_count

    def next_last_token(self) -> int:
        """Return the tick of the next last token; at least one request must decode."""
        while self._end_heap[0] not in self._by_last_token:
            heapq.heappop(self._end_heap)
        return self._end_heap[0]

    def pop_finished(self) -> list[SequenceState]:
        """Return the requests whose last token has come; the caller still has to remove them."""
        finished: list[SequenceState] = []
        end_heap = self._end_heap
        while end_heap and end_heap[0] <= self.token_clock:
            finished += self._by_last_token.pop(heapq.heappop(end_heap), {}).values()
        return finished

    def _block_phase(self, sequence: SequenceState) -> int:
        """Return the tick, modulo the block size, at which it begins a block.

        The cache then holds one token more than whole blocks. After a step it holds the prompt and
        the emitted tokens less the newest one.
        """
        return (sequence.base_token_clock - sequence.request.prompt_tokens + 2) % self._block_size


def decode_steps(
    speed: StepTime, decoding: int, kv_tokens: int, max_steps: int, seconds: float
) -> tuple[int, float]:
    """Return how many of the next decode-only steps begin within `seconds`, and their total time.

    Each of the at most `max_steps` steps adds a token per decoding request to the cache. `seconds`
    is above 0. Each step takes longer than the one before by the same amount, as `StepTime`
    guarantees up to the mean length of a window: these are the last steps, if any is before.
    """
    if 0 < decoding <= (below := int(speed.window * decoding) - kv_tokens):
        max_steps = min(max_steps, below // decoding)
    first = speed.seconds(decoding=decoding, kv_tokens=kv_tokens + decoding)
    if max_steps > 1:
        max_steps = min(max_steps, int(min(seconds / first, max_steps)) + 1)
    if max_steps == 1:
        return 1, first
    last = speed.seconds(decoding=decoding, kv_tokens=kv_tokens + max_steps * decoding)
    total = max_steps * (first + last) / 2
    if total - last < seconds:
        return max_steps, total
    growth = (last - first) / (max_steps - 1)
    steps = _steps_until(first, growth, seconds)
    return steps, _total_seconds(first, growth, steps)


def _total_seconds(first: float, growth: float, steps: int) -> float:
    return steps * first + growth * steps * (steps - 1) / 2


def _steps_until(first: float, growth: float, seconds: float) -> int:
    """Return the fewest steps that together take `seconds`, by the quadratic formula."""
    base = first - growth / 2
    steps = math.ceil(2 * seconds / (base + math.sqrt(base * base + 2 * growth * seconds)))
    while steps > 1 and _total_seconds(first, growth, steps - 1) >= seconds:
        steps -= 1
    while _total_seconds(first, growth, steps) < seconds:
        steps += 1
    return steps
