"""An inference engine as a state machine: waiting queue, running set, KV blocks, step time.

The scheduling of vLLM V1, without prefix cache and speculation. In every step running requests come
first: each decoding one computes a token, an unfinished prompt gets the rest of the step's tokens.
Where their KV blocks do not suffice, the last running request (under `priority`: the worst) loses
its cache and waits again, keeping its answer so far. In a step without such a preemption waiting
requests are admitted while a seat, tokens of the step, and blocks for their whole input are free.

No clock and no randomness: a step says how long it took. Every decoding request advances by one
token in every step, so its tokens, its blocks and its end follow from the number of the step;
nothing is counted up per request, and a step costs little more than the list of who got a token.
"""

import heapq

from tessera.domain.engine_requests import Finished, Limits, Policy, Reason, Refusal, Request, Step
from tessera.domain.perf import StepTime


class _Sequence:
    """A request inside the engine."""

    __slots__ = ("computed", "emitted", "order", "preemptions", "request", "zero")

    def __init__(self, request: Request, order: tuple[int, int]) -> None:
        self.request = request
        self.order = order
        """Smaller runs first and is preempted last."""
        self.emitted = 0
        """Tokens of the answer when it last joined or left the decoding ones."""
        self.computed = 0
        """Tokens in the cache while the input is being computed."""
        self.zero = 0
        """While decoding: number of the step less this is the number of emitted tokens."""
        self.preemptions = 0

    @property
    def input_tokens(self) -> int:
        """What the next token needs computed: after a preemption the answer so far as well."""
        return self.request.prompt_tokens + self.emitted

    @property
    def last_step(self) -> int:
        """The step that emits the last token, while decoding."""
        return self.zero + self.request.output_tokens


class Engine:
    """One engine; requests are submitted and aborted between two steps."""

    def __init__(self, limits: Limits, speed: StepTime) -> None:
        self.limits = limits
        self.speed = speed
        self.free_blocks = limits.blocks - 1
        self.kv_tokens = 0
        """Tokens in the cache."""
        self.queued_tokens = 0
        """Prompt tokens of the requests that have no first token yet."""
        self._arrivals = 0
        self._steps = 0
        self._waiting: dict[int, _Sequence] = {}
        self._queue: list[tuple[tuple[int, int], _Sequence]] = []
        """A heap of the waiting; aborted ones stay in it until they come up."""
        self._running: dict[int, _Sequence] = {}
        """In the order of admission, so that an unfinished prompt is always the last."""
        self._unfinished: _Sequence | None = None
        self._joined: list[_Sequence] = []
        """Those whose input was completed in the present step."""
        self._growing = [0] * limits.block_size
        """How many decoding requests begin a block, by the number of the step in a block's turn."""
        self._ending: dict[int, dict[int, _Sequence]] = {}
        """Decoding requests by the step of their last token."""

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
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return 1 - self.free_blocks / (self.limits.blocks - 1)

    def submit(self, request: Request) -> Refusal | None:
        """Queue a request, or say which limit refuses it."""
        if request.id in self._waiting or request.id in self._running:
            raise ValueError(f"request {request.id} is in the engine already")
        refusal = self._refusal(request)
        if refusal is None:
            self._arrivals += 1
            rank = request.priority if self.limits.policy is Policy.PRIORITY else 0
            self.queued_tokens += request.prompt_tokens
            self._enqueue(_Sequence(request, (rank, self._arrivals)))
        return refusal

    def is_waiting(self, request_id: int) -> bool:
        """Whether a request waits, for the first time or after a preemption."""
        return request_id in self._waiting

    def abort(self, request_id: int) -> Finished | None:
        """Take a request out; None when it is not, or no longer, here."""
        sequence = self._waiting.pop(request_id, None)
        if sequence is None:
            sequence = self._running.get(request_id)
            if sequence is None:
                return None
            self._evict(sequence)
        if sequence.emitted == 0:
            self.queued_tokens -= sequence.request.prompt_tokens
        return _finished(sequence, Reason.ABORT)

    def step(self) -> Step | None:
        """Do one step; None when there is nothing to do."""
        if self.idle:
            return None
        self._joined.clear()
        preempted, chunk = self._make_room()
        before = self.kv_tokens
        decoding = self._decode()
        if self._unfinished is not None:
            self._compute(self._unfinished, chunk)
        admitted = () if preempted else self._admit(self._tokens_left(before))
        prefill = self.kv_tokens - before - decoding
        kv_tokens = self.kv_tokens
        emitted = tuple(self._running)
        return Step(
            seconds=self.speed.seconds(
                decoding=decoding, kv_tokens=kv_tokens, prefill_tokens=prefill
            ),
            emitted=emitted if self._unfinished is None else emitted[:-1],
            admitted=admitted,
            first=self._first_tokens(),
            resumed=tuple(joined.request.id for joined in self._joined if joined.emitted),
            finished=self._finish(),
            preempted=preempted,
            prefill_tokens=prefill,
            decoding=decoding,
            kv_tokens=kv_tokens,
        )

    def _refusal(self, request: Request) -> Refusal | None:
        limits = self.limits
        if request.prompt_tokens + request.output_tokens > limits.max_model_len:
            return Refusal.TOO_LONG
        present = len(self._waiting) + len(self._running)
        if limits.max_queued_requests is not None and present >= limits.max_queued_requests:
            return Refusal.QUEUED_REQUESTS
        if limits.max_queued_tokens is not None and self.queued_tokens >= limits.max_queued_tokens:
            return Refusal.QUEUED_TOKENS
        return None

    def _enqueue(self, sequence: _Sequence) -> None:
        self._waiting[sequence.request.id] = sequence
        heapq.heappush(self._queue, (sequence.order, sequence))

    def _make_room(self) -> tuple[tuple[int, ...], int]:
        """Preempt until the step's blocks suffice: who was, and the unfinished prompt's tokens."""
        preempted: list[int] = []
        while True:
            chunk = self._chunk()
            if self._blocks_needed(chunk) <= self.free_blocks:
                return tuple(preempted), chunk
            victim = self._last()
            self._evict(victim)
            victim.preemptions += 1
            self._enqueue(victim)
            preempted.append(victim.request.id)

    def _chunk(self) -> int:
        """Tokens of the unfinished prompt that go into the next step beside the decoding ones."""
        if self._unfinished is None:
            return 0
        left = self._unfinished.input_tokens - self._unfinished.computed
        return min(left, self.limits.max_num_batched_tokens - len(self._running) + 1)

    def _blocks_needed(self, chunk: int) -> int:
        needed = self._growing[(self._steps + 1) % self.limits.block_size]
        if self._unfinished is not None:
            needed += self._blocks_to_add(self._unfinished, chunk)
        return needed

    def _blocks_to_add(self, sequence: _Sequence, tokens: int) -> int:
        held = self.limits.blocks_for(sequence.computed)
        return self.limits.blocks_for(sequence.computed + tokens) - held

    def _last(self) -> _Sequence:
        """The running request that is preempted next."""
        if self.limits.policy is Policy.PRIORITY:
            return max(self._running.values(), key=lambda sequence: sequence.order)
        return next(reversed(self._running.values()))

    def _decode(self) -> int:
        """Begin the step: every decoding request computes one token."""
        self._steps += 1
        decoding = len(self._running) - (self._unfinished is not None)
        self.free_blocks -= self._growing[self._steps % self.limits.block_size]
        self.kv_tokens += decoding
        return decoding

    def _tokens_left(self, before: int) -> int:
        """Tokens that the step has left, given the cache's tokens at its beginning."""
        return self.limits.max_num_batched_tokens - (self.kv_tokens - before)

    def _admit(self, tokens: int) -> tuple[int, ...]:
        """Move waiting requests to running, the first in order until one does not fit."""
        admitted: list[int] = []
        while tokens and self._waiting and len(self._running) < self.limits.max_num_seqs:
            order, sequence = heapq.heappop(self._queue)
            request_id = sequence.request.id
            if self._waiting.get(request_id) is not sequence:
                continue
            if self.limits.blocks_for(sequence.input_tokens) > self.free_blocks:
                heapq.heappush(self._queue, (order, sequence))
                break
            self._running[request_id] = self._waiting.pop(request_id)
            admitted.append(request_id)
            tokens -= self._compute(sequence, min(tokens, sequence.input_tokens))
        return tuple(admitted)

    def _compute(self, sequence: _Sequence, tokens: int) -> int:
        """Compute so much of an input; a complete one decodes from now on."""
        self.free_blocks -= self._blocks_to_add(sequence, tokens)
        self.kv_tokens += tokens
        sequence.computed += tokens
        if sequence.computed < sequence.input_tokens:
            self._unfinished = sequence
        else:
            self._unfinished = None
            self._join(sequence)
        return tokens

    def _join(self, sequence: _Sequence) -> None:
        """From the present step on it emits a token in every step."""
        sequence.zero = self._steps - sequence.emitted - 1
        self._growing[self._turn(sequence)] += 1
        self._ending.setdefault(sequence.last_step, {})[sequence.request.id] = sequence
        self._joined.append(sequence)

    def _turn(self, sequence: _Sequence) -> int:
        """When it begins a block: its cache then holds one token more than whole blocks.

        After a step it holds the prompt and what was emitted less the newest token.
        """
        return (sequence.zero - sequence.request.prompt_tokens + 2) % self.limits.block_size

    def _first_tokens(self) -> tuple[int, ...]:
        first = [joined.request for joined in self._joined if not joined.emitted]
        self.queued_tokens -= sum(request.prompt_tokens for request in first)
        return tuple(request.id for request in first)

    def _finish(self) -> tuple[Finished, ...]:
        """Let go of those whose last token came in the present step."""
        ending = self._ending.pop(self._steps, None)
        if not ending:
            return ()
        for sequence in ending.values():
            self._evict(sequence)
        return tuple(_finished(sequence, sequence.request.ends) for sequence in ending.values())

    def _evict(self, sequence: _Sequence) -> None:
        """Take a running request's seat and cache; its answer so far stays known."""
        del self._running[sequence.request.id]
        if sequence is self._unfinished:
            self._unfinished = None
            held = sequence.computed
        else:
            self._growing[self._turn(sequence)] -= 1
            self._ending.get(sequence.last_step, {}).pop(sequence.request.id, None)
            sequence.emitted = self._steps - sequence.zero
            held = sequence.input_tokens - 1
        sequence.computed = 0
        self.kv_tokens -= held
        self.free_blocks += self.limits.blocks_for(held)


def _finished(sequence: _Sequence, reason: Reason) -> Finished:
    return Finished(
        request=sequence.request,
        reason=reason,
        output_tokens=sequence.emitted,
        preemptions=sequence.preemptions,
    )
