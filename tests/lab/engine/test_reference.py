"""The engine against a second one that counts every token and block one by one."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.perf import StepTime
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest, SchedulingPolicy

SPEED = StepTime(weights=5e-3, kv_token=1e-6, token=1e-5)


# What a block holds: a shared beginning, a request's own n-th block, or nothing to be found.
Content = int | tuple[int, int] | None


@dataclass
class Counted:
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


class Plain:
    """The rules of the engine, written without any bookkeeping ahead."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.empty = limits.blocks - 1
        self.parked: list[Content] = []
        """Free blocks that still hold something, the longest unused first."""
        self.waiting: list[Counted] = []
        self.running: list[Counted] = []
        self.arrivals = 0

    @property
    def free(self) -> int:
        return self.empty + len(self.parked)

    @property
    def held(self) -> Counter[Content]:
        return Counter(content for one in self.running for content in one.table)

    def submit(self, request: EngineRequest) -> None:
        self.arrivals += 1
        rank = request.priority if self.limits.policy is SchedulingPolicy.PRIORITY else 0
        self.waiting.append(Counted(request, (rank, self.arrivals)))

    def abort(self, number: int) -> None:
        for one in list(self.running):
            if one.request.id == number:
                self._evict(one)
        self.waiting = [one for one in self.waiting if one.request.id != number]

    def step(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]:
        """Emitted, admitted, preempted, prefill tokens, tokens in the cache."""
        preempted = self._make_room()
        work = self._planned()
        for one, tokens in work:
            self._compute(one, tokens)
        left = self.limits.max_num_batched_tokens - sum(tokens for _, tokens in work)
        admitted = [] if preempted else self._admit(left)
        work += admitted
        cached = sum(one.computed for one in self.running)
        prefill = sum(tokens for one, tokens in work if not one.decoding)
        emitted = [one for one in self.running if one.missing == 0]
        for one in emitted:
            one.emitted += 1
            one.decoding = True
        for one in sorted(emitted, key=self._joined):
            if one.emitted == one.request.output_tokens:
                self._evict(one)
        ids = tuple(one.request.id for one in emitted)
        return ids, tuple(one.request.id for one, _ in admitted), preempted, prefill, cached

    def _joined(self, one: Counted) -> int:
        """Who ends in the same step leaves in the order in which they began to decode."""
        return self.running.index(one)

    def _planned(self) -> list[tuple[Counted, int]]:
        left, work = self.limits.max_num_batched_tokens, []
        for one in self.running:
            tokens = min(one.missing, left)
            left -= tokens
            work.append((one, tokens))
        return work

    def _make_room(self) -> tuple[int, ...]:
        preempted = []
        while sum(self._added(one, tokens) for one, tokens in self._planned()) > self.free:
            by_priority = self.limits.policy is SchedulingPolicy.PRIORITY
            victim = max(self.running, key=lambda o: o.order) if by_priority else self.running[-1]
            self._evict(victim)
            self.waiting.append(victim)
            preempted.append(victim.request.id)
        return tuple(preempted)

    def _admit(self, left: int) -> list[tuple[Counted, int]]:
        admitted = []
        self.waiting.sort(key=lambda one: one.order)
        while left and self.waiting and len(self.running) < self.limits.max_num_seqs:
            one = self.waiting[0]
            found, held = self._found(one), self.held
            others = sum(content in held for content in found)
            if self._added(one, one.missing) - others > self.free:
                break
            self._hold(one, found)
            self.running.append(self.waiting.pop(0))
            tokens = min(left, one.missing)
            left -= tokens
            self._compute(one, tokens)
            admitted.append((one, tokens))
        return admitted

    def _found(self, one: Counted) -> list[Content]:
        """Contents of its first blocks: shared ones, then what it left when it was preempted."""
        found: list[Content] = []
        held = self.held
        most = (one.missing - 1) // self.limits.block_size if self.limits.prefix_cache else 0
        for name in one.request.shared_prefixes[:most]:
            if name not in held and name not in self.parked:
                break
            found.append(name)
        while len(found) < most and (one.order[1], len(found)) in self.parked:
            found.append((one.order[1], len(found)))
        return found

    def _hold(self, one: Counted, found: list[Content]) -> None:
        held = self.held
        for content in found:
            if content not in held:
                self.parked.remove(content)
        for content in [content for content in self.parked if _own(content) == one.order[1]]:
            self.parked.remove(content)
            self.empty += 1
        one.table = list(found)
        one.computed = len(found) * self.limits.block_size

    def _added(self, one: Counted, tokens: int) -> int:
        return -(-(one.computed + tokens) // self.limits.block_size) - len(one.table)

    def _compute(self, one: Counted, tokens: int) -> None:
        for _ in range(self._added(one, tokens)):
            if self.empty:
                self.empty -= 1
            else:
                self.parked.pop(0)
            one.table.append(None)
        one.computed += tokens
        if not one.decoding:
            self._name(one)

    def _name(self, one: Counted) -> None:
        """Full blocks can be found: by their shared names up to the first that exists already."""
        if not self.limits.prefix_cache:
            return
        shared, held = one.request.shared_prefixes, self.held
        for number in range(one.computed // self.limits.block_size):
            if one.table[number] in shared:
                continue
            if number >= len(shared) or shared[number] in held:
                break
            if shared[number] in self.parked:
                self.parked.remove(shared[number])
                self.empty += 1
            one.table[number] = shared[number]

    def _evict(self, one: Counted) -> None:
        self._name(one)
        self.running.remove(one)
        full, held = one.computed // self.limits.block_size, self.held
        for number, content in reversed(list(enumerate(one.table))):
            if not self.limits.prefix_cache:
                self.empty += 1
            elif isinstance(content, int):
                if content not in held:
                    self.parked.append(content)
            else:
                self.parked.append((one.order[1], number if number < full else -1))
        one.table, one.computed, one.decoding = [], 0, False


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


@settings(max_examples=200)
@given(limits, events)
def test_the_engine_does_in_every_step_what_counting_one_by_one_gives(
    bounds: EngineLimits, happening: list[tuple[int, int, int, int, int] | int | str]
) -> None:
    engine, plain, arrived = EngineCore(bounds, SPEED), Plain(bounds), 0
    for event in [*happening, *["step"] * 600]:
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
            plain.submit(request)
        elif isinstance(event, int):
            engine.abort(event)
            plain.abort(event)
        elif (done := engine.step()) is not None:
            got = done.emitted, done.admitted, done.preempted, done.prefill_tokens, done.kv_tokens
            assert got == plain.step()
            assert engine.free_blocks == plain.free
            assert engine.logical_blocks == sum(len(one.table) for one in plain.running)
    assert engine.idle
    assert plain.running == plain.waiting == []


def _shared(family: int, count: int) -> tuple[int, ...]:
    return tuple(100 * family + number for number in range(count))
