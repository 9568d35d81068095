"""The schedule of an inference engine: waiting queue, running set, KV blocks, step time.

As in vLLM V1. In every step running requests come first: each decoding one computes a token, an
unfinished prompt gets the rest of the step's tokens. Where their KV blocks do not suffice, the last
running request (under `priority`: the worst) loses its cache and waits again, keeping its answer so
far. In a step without such a preemption waiting requests are admitted while a seat, tokens of the
step, and blocks for their whole input are free.

No clock and no randomness: a step says how long it took. Every decoding request advances by the
same number of tokens in every step (one without speculation), so the engine counts beats, one a
token: from the beat follow a request's tokens, its blocks and its end. Nothing is counted up per
request, and many steps in which requests only decode can be done at once.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator

from tessera.domain.engine.blocks import Blocks, Found
from tessera.domain.engine.counts import Counts
from tessera.domain.engine.decoding import Decoding
from tessera.domain.engine.sequence import Sequence
from tessera.domain.engine.speculation import Speculation
from tessera.domain.engine.stretch import stretch
from tessera.domain.engine_requests import (
    Finished,
    Limits,
    Policy,
    Reason,
    Refusal,
    Request,
    Step,
)
from tessera.domain.perf import StepTime


class Engine:
    """One engine; requests are submitted and aborted between two steps.

    A step is `step()`, or in two halves `work()` and `let_go()`; `skip()` does many equal ones.
    """

    def __init__(
        self,
        limits: Limits,
        speed: StepTime,
        speculation: Speculation | None = None,
        gains: Iterator[int] | None = None,
    ) -> None:
        """`gains` are the tokens of each speculative step; None: the steady ones."""
        self.limits = limits
        self.speed = speed
        self.counts = Counts()
        self.kv_tokens = 0
        """Tokens in the cache, those of a shared beginning once for each who reads them."""
        self.queued_tokens = 0
        """Prompt tokens of the requests that have no first token yet."""
        self.admitted: list[Sequence] = []
        """In the newest step, like the next two."""
        self.preempted: list[Sequence] = []
        self.joined: list[Sequence] = []
        """Those whose input was completed."""
        self._speculation = speculation
        self._gains = gains or (speculation.steady() if speculation else None)
        self._work_per_token = 1 + (speculation.draft_tokens if speculation else 0)
        self._blocks = Blocks(limits)
        self._draining = False
        self._arrivals = 0
        self._decoding = Decoding(limits)
        self._waiting: dict[int, Sequence] = {}
        self._queue: list[tuple[tuple[int, int], Sequence]] = []
        """A heap of the waiting; aborted ones stay in it until they come up."""
        self._blocked = False
        """Whether the first of the waiting did not fit, and nothing was freed since."""
        self._running: dict[int, Sequence] = {}
        """In the order of admission, so that an unfinished prompt is always the last."""
        self._unfinished: Sequence | None = None
        self._pairs = 0
        """Tokens that the newest step's chunks attend to, as `StepTime` counts them."""
        if speculation is not None:
            speculation.check_room(limits)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def free_blocks(self) -> int:
        return self._blocks.free

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return 1 - self._blocks.free / (self.limits.blocks - 1)

    @property
    def logical_blocks(self) -> int:
        """Blocks in use as if nothing were shared."""
        return self.limits.blocks - 1 - self._blocks.free + self._blocks.repeated

    @property
    def kv_waste(self) -> float:
        """Share of the reserved token slots that hold no token (F24)."""
        slots = self.logical_blocks * self.limits.block_size
        return 1 - self.kv_tokens / slots if slots else 0.0

    @property
    def requests(self) -> tuple[int, ...]:
        """Who is here, running ones first."""
        return (*self._running, *self._waiting)

    def submit(self, request: Request, at: float = 0.0) -> Refusal | None:
        """Queue a request, or say which limit refuses it; `at` is only kept."""
        if request.id in self._waiting or request.id in self._running:
            raise ValueError(f"request {request.id} is in the engine already")
        refusal = self._refusal(request)
        if refusal is None:
            self._arrivals += 1
            rank = request.priority if self.limits.policy is Policy.PRIORITY else 0
            self.queued_tokens += request.prompt_tokens
            self._enqueue(Sequence(request, (rank, self._arrivals), at))
        return refusal

    def drain(self) -> None:
        """From now on refuse what comes; all that is here still runs to its end."""
        self._draining = True

    def forget(self) -> None:
        """Empty the prefix cache; what requests hold at present stays shared."""
        self._blocks.clear()

    def is_waiting(self, request_id: int) -> bool:
        """Whether a request waits, for the first time or after a preemption."""
        return request_id in self._waiting

    def abort(self, request_id: int) -> Finished | None:
        """Take a request out; None when it is not, or no longer, here."""
        sequence = self.take_out(request_id)
        return None if sequence is None else sequence.finished(Reason.ABORT)

    def take_out(self, request_id: int) -> Sequence | None:
        """As `abort`, for who needs its moments."""
        sequence = self._waiting.pop(request_id, None)
        self._blocked = False
        if sequence is None:
            sequence = self._running.get(request_id)
            if sequence is None:
                return None
            self._evict(sequence)
        if sequence.emitted == 0:
            self.queued_tokens -= sequence.request.prompt_tokens
        return sequence

    def step(self) -> Step | None:
        """Do one step; None when there is nothing to do."""
        if self.idle:
            return None
        queried, hit = self.counts.queried_tokens, self.counts.hit_tokens
        decoding, gain, prefill, seconds = self._work()
        kv_tokens = self.kv_tokens
        emitted = tuple(self._running)
        first = [joined for joined in self.joined if not joined.emitted]
        resumed = [joined for joined in self.joined if joined.emitted]
        finished = self.let_go()
        return Step(
            seconds=seconds,
            emitted=emitted if self._unfinished is None else emitted[:-1],
            admitted=_ids(self.admitted),
            first=_ids(first),
            resumed=_ids(resumed),
            finished=tuple([gone.finished(gone.request.ends) for gone in finished]),
            preempted=_ids(self.preempted),
            prefill_tokens=prefill,
            decoding=decoding,
            kv_tokens=kv_tokens,
            gain=gain,
            queried_tokens=self.counts.queried_tokens - queried,
            hit_tokens=self.counts.hit_tokens - hit,
            first_cached_tokens=sum([joined.cached or 0 for joined in first]),
        )

    def work(self) -> float:
        """The step without letting go of those that end with it: its seconds.

        Afterwards `admitted`, `preempted` and `joined` are of this step. Not while idle.
        """
        return self._work()[3]

    def let_go(self) -> list[Sequence]:
        """Those whose last token came in the newest step."""
        gone = self._decoding.ended()
        for sequence in gone:
            self._evict(sequence)
        return gone

    def skip(self, seconds: float) -> float:
        """Do at once the next steps in which requests only decode, as many as begin within
        `seconds`: how long they took.

        0 when the next step is of another kind, or there is none. The last may be somebody's end.
        """
        running = len(self._running)
        if not running or self._unfinished is not None or self._gains is not None:
            return 0.0
        if self._waiting and not self._blocked and running < self.limits.max_num_seqs:
            return 0.0
        most = self._steps_with_room(self._decoding.next_end() - self._decoding.beat)
        if not most:
            return 0.0
        steps, took = stretch(self.speed, running, self.kv_tokens, most, seconds)
        counts = self.counts
        counts.steps += steps
        counts.generated_tokens += steps * running
        counts.read_kv_tokens += steps * self.kv_tokens + running * steps * (steps + 1) // 2
        self._blocks.free -= self._decoding.growth(steps)
        self._decoding.beat += steps
        self.kv_tokens += steps * running
        return took

    def _refusal(self, request: Request) -> Refusal | None:
        limits = self.limits
        if self._draining:
            return Refusal.DRAINING
        if request.prompt_tokens + request.output_tokens > limits.max_model_len:
            return Refusal.TOO_LONG
        present = len(self._waiting) + len(self._running)
        if limits.max_queued_requests is not None and present >= limits.max_queued_requests:
            return Refusal.QUEUED_REQUESTS
        if limits.max_queued_tokens is not None and self.queued_tokens >= limits.max_queued_tokens:
            return Refusal.QUEUED_TOKENS
        return None

    def _enqueue(self, sequence: Sequence) -> None:
        self._waiting[sequence.request.id] = sequence
        heapq.heappush(self._queue, (sequence.order, sequence))
        if self._queue[0][1] is sequence:
            self._blocked = False

    def _work(self) -> tuple[int, int, int, float]:
        """Decoding requests, tokens of each, tokens of prompts, seconds."""
        self.admitted.clear()
        self.preempted.clear()
        self.joined.clear()
        self._pairs = 0
        decoding_ones, blocks, limits = self._decoding, self._blocks, self.limits
        gain = 1 if self._gains is None else next(self._gains)
        prefill = 0
        if self._unfinished is not None or decoding_ones.growth(gain) > blocks.free:
            prefill = self._make_room(gain)
        decoding = len(self._running) - (self._unfinished is not None)
        blocks.free -= decoding_ones.growth(gain)
        decoding_ones.beat += gain
        self.kv_tokens += gain * decoding
        left = limits.max_num_batched_tokens - decoding * self._work_per_token - prefill
        if self._unfinished is not None:
            self._compute(self._unfinished, prefill)
        if self._waiting and not self.preempted and len(self._running) < limits.max_num_seqs:
            prefill += self._admit(left)
        counts = self.counts
        counts.steps += 1
        counts.prefill_tokens += prefill
        counts.generated_tokens += gain * decoding + len(self.joined)
        counts.read_kv_tokens += self.kv_tokens
        return decoding, gain, prefill, self._seconds(decoding, prefill)

    def _seconds(self, decoding: int, prefill: int) -> float:
        speculation = self._speculation if decoding else None
        k = speculation.draft_tokens if speculation else 0
        seconds = self.speed.seconds(
            decoding=decoding,
            kv_tokens=self.kv_tokens,
            prefill_tokens=prefill + k * decoding,
            prefill_pairs=self._pairs,
        )
        if speculation is None:
            return seconds
        plain = self.speed.seconds(decoding=decoding, kv_tokens=self.kv_tokens)
        return seconds + k * speculation.draft_cost * plain

    def _make_room(self, gain: int) -> int:
        """Preempt until the step's blocks suffice: tokens that the unfinished prompt gets."""
        while True:
            chunk, needed = 0, self._decoding.growth(gain)
            unfinished = self._unfinished
            if unfinished is not None:
                decoding = len(self._running) - 1
                left = self.limits.max_num_batched_tokens - decoding * self._work_per_token
                chunk = min(unfinished.input_tokens - unfinished.computed, left)
                needed += self._blocks_to_add(unfinished, chunk)
            if needed <= self._blocks.free:
                return chunk
            victim = self._last()
            self._evict(victim)
            victim.preemptions += 1
            self.counts.preemptions += 1
            self._enqueue(victim)
            self.preempted.append(victim)

    def _blocks_to_add(self, sequence: Sequence, tokens: int) -> int:
        held = self.limits.blocks_for(sequence.computed)
        return self.limits.blocks_for(sequence.computed + tokens) - held

    def _last(self) -> Sequence:
        """The running request that is preempted next."""
        if self.limits.policy is Policy.PRIORITY:
            return max(self._running.values(), key=lambda sequence: sequence.order)
        return next(reversed(self._running.values()))

    def _admit(self, tokens: int) -> int:
        """Move waiting requests to running, the first in order until one does not fit.

        Returns how many of the step's tokens they compute.
        """
        left, queue, blocks = tokens, self._queue, self._blocks
        self._blocked = False
        while left and self._waiting and len(self._running) < self.limits.max_num_seqs:
            sequence = queue[0][1]
            request_id = sequence.request.id
            if self._waiting.get(request_id) is not sequence:
                heapq.heappop(queue)
                continue
            found = blocks.find(sequence)
            if blocks.cost(sequence, found) > blocks.free:
                self._blocked = True
                break
            if not (self.limits.chunked_prefill or sequence.input_tokens - found.tokens <= left):
                self._blocked = True
                break
            heapq.heappop(queue)
            self._running[request_id] = self._waiting.pop(request_id)
            self.admitted.append(sequence)
            self._hold(sequence, found)
            left -= self._compute(sequence, min(left, sequence.input_tokens - sequence.computed))
        return tokens - left

    def _hold(self, sequence: Sequence, found: Found) -> None:
        """Count what the prefix cache gave; it is in the cache for this request too."""
        if not self.limits.prefix_cache:
            return
        self._blocks.hold(sequence, found)
        self.kv_tokens += found.tokens
        if sequence.cached is None:
            sequence.cached = found.tokens
            self.counts.queried_tokens += sequence.request.prompt_tokens
            self.counts.hit_tokens += found.tokens

    def _compute(self, sequence: Sequence, tokens: int) -> int:
        """Compute so much of an input; a complete one decodes from now on."""
        self._blocks.free -= self._blocks_to_add(sequence, tokens)
        self.kv_tokens += tokens
        self._pairs += tokens * (tokens + 2 * sequence.computed)
        sequence.computed += tokens
        if sequence.request.shared and self.limits.prefix_cache:
            self._blocks.share(sequence, sequence.computed)
        if sequence.computed < sequence.input_tokens:
            self._unfinished = sequence
        else:
            self._unfinished = None
            self._join(sequence)
        return tokens

    def _join(self, sequence: Sequence) -> None:
        """From the present step on it emits a token in every beat."""
        if not sequence.emitted:
            self.queued_tokens -= sequence.request.prompt_tokens
        self._decoding.join(sequence)
        self.joined.append(sequence)

    def _steps_with_room(self, most: int) -> int:
        """Of so many steps, how many have the blocks that they begin."""
        free = self._blocks.free
        if len(self._running) * (most // self.limits.block_size + 1) <= free:
            return most
        return bisect_right(range(1, most + 1), free, key=self._decoding.growth)

    def _evict(self, sequence: Sequence) -> None:
        """Take a running request's seat and cache; its answer so far stays known."""
        del self._running[sequence.request.id]
        self._blocked = False
        if sequence is self._unfinished:
            self._unfinished = None
            cached = tokens = sequence.computed
        else:
            thrown_away = self._decoding.leave(sequence)
            self.counts.generated_tokens -= thrown_away
            tokens = sequence.input_tokens - 1
            cached = tokens + thrown_away
        sequence.computed = 0
        self.kv_tokens -= cached
        self._blocks.release(sequence, tokens, self.limits.blocks_for(cached))


def _ids(sequences: list[Sequence]) -> tuple[int, ...]:
    return tuple([sequence.request.id for sequence in sequences]) if sequences else ()
