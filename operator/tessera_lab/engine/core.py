"""The schedule of an inference engine: waiting queue, running set, KV blocks, step time.

The rules are those of vLLM V1. In every step running requests come first: each decoding one
computes a token, and an unfinished prompt gets the rest of the step's tokens. Where KV blocks do
not suffice, the last running request (under `priority`: the lowest) is preempted: it loses its
cache, keeps its output so far and waits again. In a step without a preemption waiting requests are
admitted while `max_num_seqs`, the step's tokens and the blocks for their whole input allow it.

There is no clock and no randomness: a step returns its duration. Every decoding request advances by
the same number of tokens in every step (one without speculation), so the engine counts a token
clock, one tick per token. A request's tokens, blocks and end follow from the token clock. Nothing
is counted per request, and many steps in which requests only decode can be done at once.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tessera.domain.perf.step import StepTime, attention_pairs
from tessera_lab.engine.block_pool import BlockPool, PrefixHit
from tessera_lab.engine.decode_batch import DecodeBatch, decode_steps
from tessera_lab.engine.requests import (
    EngineLimits,
    EngineRequest,
    EngineStep,
    FinishedRequest,
    FinishReason,
    RejectionReason,
    SchedulingPolicy,
)
from tessera_lab.engine.sequence_state import SequenceState
from tessera_lab.engine.speculation import Speculation


@dataclass(slots=True)
class EngineCounters:
    """Totals of an engine since its start."""

    steps: int = 0
    slot_steps: int = 0
    """Running requests, summed over the steps."""
    prefill_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache at the first admission of a request."""
    hit_tokens: int = 0
    read_kv_tokens: int = 0
    """Cached tokens, summed over the steps that read them."""


class EngineCore:
    """One engine; requests are submitted and aborted between two steps.

    A step is `step()`, or in two halves `begin_step()` and `end_step()`; `skip()` does many equal
    steps.
    """

    def __init__(
        self,
        limits: EngineLimits,
        speed: StepTime,
        speculation: Speculation | None = None,
        tokens_per_step: Iterator[int] | None = None,
    ) -> None:
        """Start empty; `tokens_per_step` replaces the steady yield of speculative steps."""
        self.limits = limits
        self.speed = speed
        self.counts = EngineCounters()
        self.kv_tokens = 0
        """Tokens in the cache; a shared prefix counts once for each request that reads it."""
        self.queued_tokens = 0
        """Prompt tokens of the requests that have no first token yet."""
        self.admitted: list[SequenceState] = []
        """Requests that the newest step admitted."""
        self.preempted: list[SequenceState] = []
        self.completed_prefills: list[SequenceState] = []
        """Requests whose input the newest step completed."""
        self._speculation = speculation
        self._step_time = speed if speculation is None else speculation.step_time(speed)
        self._tokens_per_step = tokens_per_step or (
            speculation.steady_tokens() if speculation else None
        )
        self._tokens_per_decode = 1 + (speculation.draft_tokens if speculation else 0)
        self._blocks = BlockPool(limits)
        self._draining = False
        self._arrivals = 0
        self._decode_batch = DecodeBatch(limits)
        self._waiting: dict[int, SequenceState] = {}
        self._queue: list[tuple[tuple[int, int], SequenceState]] = []
        """A heap of the waiting requests; aborted ones stay in it until they are popped."""
        self._head_blocked = False
        """Whether the first waiting request did not fit, and no block was freed since."""
        self._running: dict[int, SequenceState] = {}
        """Running requests in the order of admission, so that an unfinished prompt is always the
        last."""
        self._partial_prefill: SequenceState | None = None
        self._attention_pairs = 0
        """Pairs of tokens that the newest step's chunks attend to, as `StepTime` counts them."""
        if speculation is not None:
            speculation.check_limits(limits)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Return the prompt tokens of waiting requests."""
        return sum([sequence.request.prompt_tokens for sequence in self._waiting.values()])

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def free_blocks(self) -> int:
        return self._blocks.free

    @property
    def kv_usage(self) -> float:
        """Return the share of the KV blocks in use."""
        return 1 - self._blocks.free / (self.limits.blocks - 1)

    @property
    def logical_blocks(self) -> int:
        """Return the blocks that would be in use if nothing were shared."""
        return self.limits.blocks - 1 - self._blocks.free + self._blocks.saved_by_sharing

    @property
    def requests(self) -> tuple[int, ...]:
        """Return the ids of all requests, running ones first."""
        return (*self._running, *self._waiting)

    def submit(self, request: EngineRequest, at: float = 0.0) -> RejectionReason | None:
        """Queue a request, or return the limit that rejects it; `at` is stored for the timeline."""
        if request.id in self._waiting or request.id in self._running:
            raise ValueError(f"request {request.id} is in the engine already")
        rejection = self._rejection(request)
        if rejection is None:
            self._arrivals += 1
            rank = request.priority if self.limits.policy is SchedulingPolicy.PRIORITY else 0
            self.queued_tokens += request.prompt_tokens
            self._enqueue(SequenceState(request, (rank, self._arrivals), at))
        return rejection

    def drain(self) -> None:
        """Reject new requests from now on; all others run to their end."""
        self._draining = True

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache; what requests reference at present stays shared."""
        self._blocks.clear()

    def cached_tokens(self, shared_prefixes: Sequence[int]) -> int:
        """Return the tokens that the prefix cache has of a prompt, by the names of its prefixes."""
        return self._blocks.known_units(shared_prefixes) * self._blocks.unit_tokens

    def held_tokens(self, shared_prefixes: Sequence[int]) -> int:
        """Return the tokens of a prompt that admitted requests hold, by its prefixes."""
        return self._blocks.held_units(shared_prefixes) * self._blocks.unit_tokens

    def is_waiting(self, request_id: int) -> bool:
        """Return whether a request waits, for the first time or after a preemption."""
        return request_id in self._waiting

    def abort(self, request_id: int) -> FinishedRequest | None:
        """Remove a request; None when the engine does not have it."""
        sequence = self.remove(request_id)
        return None if sequence is None else sequence.to_finished(FinishReason.ABORT)

    def remove(self, request_id: int) -> SequenceState | None:
        """Remove a request as `abort` does, and return its state with its timestamps."""
        sequence = self._waiting.pop(request_id, None)
        self._head_blocked = False
        if sequence is None:
            sequence = self._running.get(request_id)
            if sequence is None:
                return None
            self._evict(sequence)
        if sequence.emitted == 0:
            self.queued_tokens -= sequence.request.prompt_tokens
        return sequence

    def step(self) -> EngineStep | None:
        """Do one step; None when there is nothing to do."""
        if self.idle:
            return None
        queried, hit = self.counts.queried_tokens, self.counts.hit_tokens
        decoding, gain, prefill, seconds = self._run_step()
        kv_tokens = self.kv_tokens
        emitted = tuple(self._running)
        first = [sequence for sequence in self.completed_prefills if not sequence.emitted]
        resumed = [sequence for sequence in self.completed_prefills if sequence.emitted]
        finished = self.end_step()
        return EngineStep(
            seconds=seconds,
            emitted=emitted if self._partial_prefill is None else emitted[:-1],
            admitted=_ids(self.admitted),
            first=_ids(first),
            resumed=_ids(resumed),
            finished=tuple(
                [sequence.to_finished(sequence.request.finish_reason) for sequence in finished]
            ),
            preempted=_ids(self.preempted),
            prefill_tokens=prefill,
            decoding=decoding,
            kv_tokens=kv_tokens,
            tokens_per_request=gain,
            drafted=self._speculation is not None,
            queried_tokens=self.counts.queried_tokens - queried,
            hit_tokens=self.counts.hit_tokens - hit,
            first_cached_tokens=sum([sequence.cached or 0 for sequence in first]),
        )

    def begin_step(self) -> float:
        """Do a step up to its end and return its seconds; the engine must not be idle.

        Afterwards `admitted`, `preempted` and `completed_prefills` are those of this step.
        `end_step` removes the requests that end with it.
        """
        return self._run_step()[3]

    def end_step(self) -> list[SequenceState]:
        """Remove and return the requests whose last token came in the newest step."""
        finished = self._decode_batch.pop_finished()
        for sequence in finished:
            self._evict(sequence)
        return finished

    def skip(self, seconds: float) -> float:
        """Do all decode-only steps that begin within `seconds`, and return how long they took.

        The result is 0 when the next step is of another kind, or there is none. The last step may
        end requests.
        """
        running = len(self._running)
        if not running or self._partial_prefill is not None or self._tokens_per_step is not None:
            return 0.0
        if self._waiting and not self._head_blocked and running < self.limits.max_num_seqs:
            return 0.0
        max_steps = self._steps_within_blocks(
            self._decode_batch.next_last_token() - self._decode_batch.token_clock
        )
        if not max_steps:
            return 0.0
        steps, elapsed = decode_steps(self.speed, running, self.kv_tokens, max_steps, seconds)
        counts = self.counts
        counts.steps += steps
        counts.slot_steps += steps * running
        counts.generated_tokens += steps * running
        counts.read_kv_tokens += steps * self.kv_tokens + running * steps * (steps + 1) // 2
        self._blocks.free -= self._decode_batch.blocks_needed(steps)
        self._decode_batch.token_clock += steps
        self.kv_tokens += steps * running
        return elapsed

    def quiet_seconds(self) -> float:
        """Return for how long at least no request ends or gets its first token.

        0 where that is not known: a prompt is read or waits. It is meant for engines that get no
        request before.
        """
        running = len(self._running)
        if not running or self._partial_prefill is not None or self._waiting:
            return 0.0
        if self._tokens_per_step is not None:
            return 0.0
        steps = self._decode_batch.next_last_token() - self._decode_batch.token_clock
        first = self.speed.seconds(decoding=running, kv_tokens=self.kv_tokens + running)
        return steps * first

    def _rejection(self, request: EngineRequest) -> RejectionReason | None:
        limits = self.limits
        if self._draining:
            return RejectionReason.DRAINING
        if request.prompt_tokens + request.output_tokens > limits.max_model_len:
            return RejectionReason.TOO_LONG
        request_count = len(self._waiting) + len(self._running)
        if limits.max_queued_requests is not None and request_count >= limits.max_queued_requests:
            return RejectionReason.QUEUED_REQUESTS
        if limits.max_queued_tokens is not None and self.queued_tokens >= limits.max_queued_tokens:
            return RejectionReason.QUEUED_TOKENS
        return None

    def _enqueue(self, sequence: SequenceState) -> None:
        self._waiting[sequence.request.id] = sequence
        heapq.heappush(self._queue, (sequence.queue_key, sequence))
        if self._queue[0][1] is sequence:
            self._head_blocked = False

    def _run_step(self) -> tuple[int, int, int, float]:
        """Return the decoding requests, the tokens of each, the prompt tokens, and the seconds."""
        self.admitted.clear()
        self.preempted.clear()
        self.completed_prefills.clear()
        self._attention_pairs = 0
        decode_batch, blocks, limits = self._decode_batch, self._blocks, self.limits
        gain = 1 if self._tokens_per_step is None else next(self._tokens_per_step)
        prefill = 0
        if self._partial_prefill is not None or decode_batch.blocks_needed(gain) > blocks.free:
            prefill = self._preempt_for_blocks(gain)
        decoding = len(self._running) - (self._partial_prefill is not None)
        blocks.free -= decode_batch.blocks_needed(gain)
        decode_batch.token_clock += gain
        self.kv_tokens += gain * decoding
        left = limits.max_num_batched_tokens - decoding * self._tokens_per_decode - prefill
        if self._partial_prefill is not None:
            self._compute(self._partial_prefill, prefill)
        if self._waiting and not self.preempted and len(self._running) < limits.max_num_seqs:
            prefill += self._admit(left)
        counts = self.counts
        counts.steps += 1
        counts.slot_steps += len(self._running)
        counts.prefill_tokens += prefill
        counts.generated_tokens += gain * decoding + len(self.completed_prefills)
        counts.read_kv_tokens += self.kv_tokens
        return decoding, gain, prefill, self._seconds(decoding, prefill)

    def _seconds(self, decoding: int, prefill: int) -> float:
        return self._step_time.seconds(
            decoding=decoding,
            kv_tokens=self.kv_tokens,
            prefill_tokens=prefill,
            prefill_pairs=self._attention_pairs,
        )

    def _preempt_for_blocks(self, gain: int) -> int:
        """Preempt until the step's blocks suffice; return the tokens of the unfinished prompt."""
        while True:
            chunk, needed = 0, self._decode_batch.blocks_needed(gain)
            unfinished = self._partial_prefill
            if unfinished is not None:
                decoding = len(self._running) - 1
                left = self.limits.max_num_batched_tokens - decoding * self._tokens_per_decode
                chunk = min(unfinished.input_tokens - unfinished.computed, left)
                needed += self._blocks_to_add(unfinished, chunk)
            if needed <= self._blocks.free:
                return chunk
            victim = self._preemption_victim()
            self._evict(victim)
            victim.preemptions += 1
            self.counts.preemptions += 1
            self._enqueue(victim)
            self.preempted.append(victim)

    def _blocks_to_add(self, sequence: SequenceState, tokens: int) -> int:
        current = self.limits.blocks_for(sequence.computed)
        return self.limits.blocks_for(sequence.computed + tokens) - current

    def _preemption_victim(self) -> SequenceState:
        """Return the running request that is preempted next."""
        if self.limits.policy is SchedulingPolicy.PRIORITY:
            return max(self._running.values(), key=lambda sequence: sequence.queue_key)
        return next(reversed(self._running.values()))

    def _admit(self, tokens: int) -> int:
        """Move waiting requests to running, in order, until one does not fit.

        Returns how many of the step's tokens they compute.
        """
        left, queue, blocks = tokens, self._queue, self._blocks
        self._head_blocked = False
        while left and self._waiting and len(self._running) < self.limits.max_num_seqs:
            sequence = queue[0][1]
            request_id = sequence.request.id
            if self._waiting.get(request_id) is not sequence:
                heapq.heappop(queue)
                continue
            hit = blocks.find(sequence)
            if blocks.cost(sequence, hit) > blocks.free:
                self._head_blocked = True
                break
            if not (self.limits.chunked_prefill or sequence.input_tokens - hit.tokens <= left):
                self._head_blocked = True
                break
            heapq.heappop(queue)
            self._running[request_id] = self._waiting.pop(request_id)
            self.admitted.append(sequence)
            self._acquire_prefix(sequence, hit)
            left -= self._compute(sequence, min(left, sequence.input_tokens - sequence.computed))
        return tokens - left

    def _acquire_prefix(self, sequence: SequenceState, hit: PrefixHit) -> None:
        """Take the cached prefix of a request and count it."""
        if not self.limits.prefix_cache:
            return
        self._blocks.acquire(sequence, hit)
        self.kv_tokens += hit.tokens
        if sequence.cached is None:
            sequence.cached = hit.tokens
            self.counts.queried_tokens += sequence.request.prompt_tokens
            self.counts.hit_tokens += hit.tokens

    def _compute(self, sequence: SequenceState, tokens: int) -> int:
        """Compute so many tokens of an input; a completed one decodes from now on."""
        self._blocks.free -= self._blocks_to_add(sequence, tokens)
        self.kv_tokens += tokens
        self._attention_pairs += attention_pairs(tokens, sequence.computed)
        sequence.computed += tokens
        if sequence.request.shared_prefixes and self.limits.prefix_cache:
            self._blocks.share(sequence, sequence.computed)
        if sequence.computed < sequence.input_tokens:
            self._partial_prefill = sequence
        else:
            self._partial_prefill = None
            self._start_decoding(sequence)
        return tokens

    def _start_decoding(self, sequence: SequenceState) -> None:
        """Let it emit a token with every tick of the token clock, from this step on."""
        if not sequence.emitted:
            self.queued_tokens -= sequence.request.prompt_tokens
        self._decode_batch.add(sequence)
        self.completed_prefills.append(sequence)

    def _steps_within_blocks(self, max_steps: int) -> int:
        """Return how many of `max_steps` have the blocks that they begin."""
        free = self._blocks.free
        if len(self._running) * (max_steps // self.limits.block_size + 1) <= free:
            return max_steps
        return bisect_right(range(1, max_steps + 1), free, key=self._decode_batch.blocks_needed)

    def _evict(self, sequence: SequenceState) -> None:
        """Take a running request's place and cache; its output so far is kept."""
        del self._running[sequence.request.id]
        self._head_blocked = False
        if sequence is self._partial_prefill:
            self._partial_prefill = None
            cached = tokens = sequence.computed
        else:
            discarded = self._decode_batch.remove(sequence)
            self.counts.generated_tokens -= discarded
            tokens = sequence.input_tokens - 1
            cached = tokens + discarded
        sequence.computed = 0
        self.kv_tokens -= cached
        self._blocks.release(sequence, tokens, self.limits.blocks_for(cached))


def _ids(sequences: list[SequenceState]) -> tuple[int, ...]:
    return tuple([sequence.request.id for sequence in sequences]) if sequences else ()
