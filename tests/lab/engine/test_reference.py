"""The engine against a second one that counts every token and block one by one."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest, SchedulingPolicy
from tests.properties import examples

SPEED = StepTime(weights=5e-3, kv_token=1e-6, token=1e-5)


# What a block holds: a shared beginning, a request's own n-th block, or nothing to be found.
Content = int | tuple[int, int] | None


@dataclass
class ReferenceSequence:
    """A request with its tokens as plain counts and its blocks one by one."""

    request: EngineRequest
    order: tuple[int, int]
    emitted: int = 0
    computed: int = 0
    table: list[Content] = field(default_factory=list)
    decoding: bool = False

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one is emitted."""
        return self.request.prompt_tokens + self.emitted - self.computed


class ReferenceEngine:
    """The rules of the engine, written without any bookkeeping ahead."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.empty = limits.blocks - 1
        self.parked: list[Content] = []
        """Free blocks that still hold something, the longest unused first."""
        self.waiting: list[ReferenceSequence] = []
        self.running: list[ReferenceSequence] = []
        self.arrivals = 0

    @property
    def free(self) -> int:
        return self.empty + len(self.parked)

    @property
    def held_blocks(self) -> Counter[Content]:
        return Counter(content for sequence in self.running for content in sequence.table)

    def submit(self, request: EngineRequest) -> None:
        self.arrivals += 1
        rank = request.priority if self.limits.policy is SchedulingPolicy.PRIORITY else 0
        self.waiting.append(ReferenceSequence(request, (rank, self.arrivals)))

    def abort(self, number: int) -> None:
        for sequence in list(self.running):
            if sequence.request.id == number:
                self._evict(sequence)
        self.waiting = [sequence for sequence in self.waiting if sequence.request.id != number]

    def step(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]:
        """Emitted, admitted, preempted, prefill tokens, tokens in the cache."""
        preempted = self._make_room()
        work = self._planned_tokens()
        for sequence, tokens in work:
            self._compute(sequence, tokens)
        left = self.limits.max_num_batched_tokens - sum(tokens for _, tokens in work)
        admitted = [] if preempted else self._admit(left)
        work += admitted
        cached = sum(sequence.computed for sequence in self.running)
        prefill = sum(tokens for sequence, tokens in work if not sequence.decoding)
        emitted = [sequence for sequence in self.running if sequence.missing == 0]
        for sequence in emitted:
            sequence.emitted += 1
            sequence.decoding = True
        for sequence in sorted(emitted, key=self._decode_order):
            if sequence.emitted == sequence.request.output_tokens:
                self._evict(sequence)
        ids = tuple(sequence.request.id for sequence in emitted)
        return (
            ids,
            tuple(sequence.request.id for sequence, _ in admitted),
            preempted,
            prefill,
            cached,
        )

    def _decode_order(self, sequence: ReferenceSequence) -> int:
        """Who ends in the same step leaves in the order in which they began to decode."""
        return self.running.index(sequence)

    def _planned_tokens(self) -> list[tuple[ReferenceSequence, int]]:
        left, work = self.limits.max_num_batched_tokens, []
        for sequence in self.running:
            tokens = min(sequence.missing, left)
            left -= tokens
            work.append((sequence, tokens))
        return work

    def _make_room(self) -> tuple[int, ...]:
        preempted = []
        while (
            sum(self._new_blocks(sequence, tokens) for sequence, tokens in self._planned_tokens())
            > self.free
        ):
            by_priority = self.limits.policy is SchedulingPolicy.PRIORITY
            victim = (
                max(self.running, key=lambda sequence: sequence.order)
                if by_priority
                else self.running[-1]
            )
            self._evict(victim)
            self.waiting.append(victim)
            preempted.append(victim.request.id)
        return tuple(preempted)

    def _admit(self, left: int) -> list[tuple[ReferenceSequence, int]]:
        admitted = []
        self.waiting.sort(key=lambda sequence: sequence.order)
        while left and self.waiting and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            hit_blocks, held_blocks = self._hit_blocks(sequence), self.held_blocks
            others = sum(content in held_blocks for content in hit_blocks)
            if self._new_blocks(sequence, sequence.missing) - others > self.free:
                break
            self._take_blocks(sequence, hit_blocks)
            self.running.append(self.waiting.pop(0))
            tokens = min(left, sequence.missing)
            left -= tokens
            self._compute(sequence, tokens)
            admitted.append((sequence, tokens))
        return admitted

    def _hit_blocks(self, sequence: ReferenceSequence) -> list[Content]:
        """Contents of its first blocks: shared ones, then what it left when it was preempted."""
        hit_blocks: list[Content] = []
        held_blocks = self.held_blocks
        most = (sequence.missing - 1) // self.limits.block_size if self.limits.prefix_cache else 0
        for name in sequence.request.shared_prefixes[:most]:
            if name not in held_blocks and name not in self.parked:
                break
            hit_blocks.append(name)
        while len(hit_blocks) < most and (sequence.order[1], len(hit_blocks)) in self.parked:
            hit_blocks.append((sequence.order[1], len(hit_blocks)))
        return hit_blocks

    def _take_blocks(self, sequence: ReferenceSequence, hit_blocks: list[Content]) -> None:
        held_blocks = self.held_blocks
        for content in hit_blocks:
            if content not in held_blocks:
                self.parked.remove(content)
        for content in [content for content in self.parked if _own(content) == sequence.order[1]]:
            self.parked.remove(content)
            self.empty += 1
        sequence.table = list(hit_blocks)
        sequence.computed = len(hit_blocks) * self.limits.block_size

    def _new_blocks(self, sequence: ReferenceSequence, tokens: int) -> int:
        return -(-(sequence.computed + tokens) // self.limits.block_size) - len(sequence.table)

    def _compute(self, sequence: ReferenceSequence, tokens: int) -> None:
        for _ in range(self._new_blocks(sequence, tokens)):
            if self.empty:
                self.empty -= 1
            else:
                self.parked.pop(0)
            sequence.table.append(None)
        sequence.computed += tokens
        if not sequence.decoding:
            self._name_blocks(sequence)

    def _name_blocks(self, sequence: ReferenceSequence) -> None:
        """Full blocks can be found: by their shared names up to the first that exists already."""
        if not self.limits.prefix_cache:
            return
        shared, held_blocks = sequence.request.shared_prefixes, self.held_blocks
        for number in range(sequence.computed // self.limits.block_size):
            if sequence.table[number] in shared:
                continue
            if number >= len(shared) or shared[number] in held_blocks:
                break
            if shared[number] in self.parked:
                self.parked.remove(shared[number])
                self.empty += 1
            sequence.table[number] = shared[number]

    def _evict(self, sequence: ReferenceSequence) -> None:
        self._name_blocks(sequence)
        self.running.remove(sequence)
        full, held_blocks = sequence.computed // self.limits.block_size, self.held_blocks
        for number, content in reversed(list(enumerate(sequence.table))):
            if not self.limits.prefix_cache:
                self.empty += 1
            elif isinstance(content, int):
                if content not in held_blocks:
                    self.parked.append(content)
            else:
                self.parked.append((sequence.order[1], number if number < full else -1))
        sequence.table, sequence.computed, sequence.decoding = [], 0, False


def _own(content: Content) -> int | None:
    return content[0] if isinstance(content, tuple) else None


# A request (prompt, output, priority, shared beginnings and of which family), the abort of one,
# or a step.
events = st.lists(
    st.one_of(
        st.tuples(
            st.integers(1, 60),
            st.integers(1, 40),
            st.integers(-1, 1),
            st.integers(0, 25),
            st.integers(0, 2),
        ),
        st.integers(0, 12),
        st.just("step"),
        st.just("step"),
    ),
    min_size=12,
    max_size=60,
)
limits = st.builds(
    EngineLimits,
    max_model_len=st.just(100),
    max_num_seqs=st.integers(2, 6),
    max_num_batched_tokens=st.integers(6, 200),
    blocks=st.integers(26, 36),
    block_size=st.just(4),
    policy=st.sampled_from(SchedulingPolicy),
    prefix_cache=st.sampled_from([True, True, False]),
)


@settings(max_examples=examples(200))
@given(limits, events)
def test_the_engine_does_in_every_step_what_counting_one_by_one_gives(
    bounds: EngineLimits, event_list: list[tuple[int, int, int, int, int] | int | str]
) -> None:
    engine, reference, arrived = EngineCore(bounds, SPEED), ReferenceEngine(bounds), 0
    for event in [*event_list, *["step"] * 600]:
        if isinstance(event, tuple):
            prompt, output, priority, beginnings, family = event
            request = EngineRequest(
                id=arrived,
                prompt_tokens=prompt,
                output_tokens=output,
                priority=priority,
                shared_prefixes=_shared(family, min(beginnings, (prompt + output) // 4)),
            )
            arrived += 1
            assert engine.submit(request) is None
            reference.submit(request)
        elif isinstance(event, int):
            engine.abort(event)
            reference.abort(event)
        elif (done := engine.step()) is not None:
            step_counts = (
                done.emitted,
                done.admitted,
                done.preempted,
                done.prefill_tokens,
                done.kv_tokens,
            )
            assert step_counts == reference.step()
            assert engine.free_blocks == reference.free
            assert engine.logical_blocks == sum(
                len(sequence.table) for sequence in reference.running
            )
    assert engine.idle
    assert reference.running == reference.waiting == []


def _shared(family: int, count: int) -> tuple[int, ...]:
    return tuple(100 * family + number for number in range(count))
