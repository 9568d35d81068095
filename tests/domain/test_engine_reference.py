"""The engine against a second one that counts every token and block one by one."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.engine import Engine
from tessera.domain.engine_requests import Limits, Policy, Request
from tessera.domain.perf import StepTime

SPEED = StepTime(weights=5e-3, kv_token=1e-6, token=1e-5)


@dataclass
class Counted:
    """A request with its tokens and blocks as plain counts."""

    request: Request
    order: tuple[int, int]
    emitted: int = 0
    computed: int = 0
    blocks: int = 0
    decoding: bool = False

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one is emitted."""
        return self.request.prompt_tokens + self.emitted - self.computed


class Plain:
    """The rules of the engine, written without any bookkeeping ahead."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.free = limits.blocks - 1
        self.waiting: list[Counted] = []
        self.running: list[Counted] = []
        self.arrivals = 0

    def submit(self, request: Request) -> None:
        self.arrivals += 1
        rank = request.priority if self.limits.policy is Policy.PRIORITY else 0
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
            if one.emitted == one.request.output_tokens:
                self._evict(one)
        ids = tuple(one.request.id for one in emitted)
        return ids, tuple(one.request.id for one, _ in admitted), preempted, prefill, cached

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
            by_priority = self.limits.policy is Policy.PRIORITY
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
            if self._added(one, one.missing) > self.free:
                break
            self.running.append(self.waiting.pop(0))
            tokens = min(left, one.missing)
            left -= tokens
            self._compute(one, tokens)
            admitted.append((one, tokens))
        return admitted

    def _added(self, one: Counted, tokens: int) -> int:
        return -(-(one.computed + tokens) // self.limits.block_size) - one.blocks

    def _compute(self, one: Counted, tokens: int) -> None:
        added = self._added(one, tokens)
        one.blocks += added
        one.computed += tokens
        self.free -= added

    def _evict(self, one: Counted) -> None:
        self.running.remove(one)
        self.free += one.blocks
        one.blocks = one.computed = 0
        one.decoding = False


events = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(-1, 1)),
        st.integers(0, 12),
        st.just("step"),
        st.just("step"),
    ),
    max_size=60,
)
"""A request, the abort of one, or a step."""
limits = st.builds(
    Limits,
    max_model_len=st.just(100),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 64),
    blocks=st.integers(26, 60),
    block_size=st.just(4),
    policy=st.sampled_from(Policy),
)


@given(limits, events)
def test_the_engine_does_in_every_step_what_counting_one_by_one_gives(
    bounds: Limits, happening: list[tuple[int, int, int] | int | str]
) -> None:
    engine, plain, arrived = Engine(bounds, SPEED), Plain(bounds), 0
    for event in [*happening, *["step"] * 600]:
        if isinstance(event, tuple):
            prompt, output, priority = event
            request = Request(
                id=arrived, prompt_tokens=prompt, output_tokens=output, priority=priority
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
    assert engine.idle
    assert plain.running == plain.waiting == []
