"""No schedule of gateways, clocks and losses admits more than a limit and what was borrowed."""

from collections import deque
from dataclasses import dataclass, field
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.limits.account import BorrowRequest, Lease, SlotAccount, SlotGrant
from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits
from tessera.domain.limits.scopes import Meter
from tests.domain.limits.accounts import Accounts, a_limit, limits_of, slots_limit
from tests.gateway_builders import a_request

TOKENS = a_limit(Meter.TOTAL_TOKENS, 600, period_seconds=60)
LIMITS = limits_of(TOKENS)
SLOTS = limits_of(slots_limit(5))
GATEWAYS = 4


@dataclass(slots=True, eq=False)
class Member:
    """A gateway and what it must have: what it got, less what it used and gave back."""

    limits: GatewayLimits = field(default_factory=GatewayLimits)
    in_hand: float = 0.0


@dataclass(slots=True)
class Fleet:
    """Gateways, what they admitted, and what the accounts' clock added to the limit."""

    accounts: Accounts = field(default_factory=Accounts)
    members: list[Member] = field(default_factory=lambda: [Member() for _ in range(GATEWAYS)])
    open_requests: list[tuple[Member, Admitted]] = field(default_factory=list)
    now: float = 0.0
    refilled: float = 0.0
    used: float = 0.0
    history: list[tuple[float, float, float]] = field(default_factory=list)
    """What was refilled, used, and what gateways had in hand, at each moment."""

    def advance(self, seconds: float, clock_jump: float) -> None:
        self.now += seconds
        self.accounts.clock_offset += clock_jump
        self.refilled += max(0.0, seconds + clock_jump) * TOKENS.amount / TOKENS.period_seconds

    def exchange(self, member: Member, request: BorrowRequest, loss: str) -> None:
        member.in_hand -= sum(portion.returned for portion in request.portions)
        if loss != "request":
            is_lost = loss == "answer"
            member.in_hand += self.accounts.exchange(
                member.limits, request, self.now, answer_is_lost=is_lost
            )

    def take(self, member: Member, tokens: int, loss: str) -> None:
        shape = a_request(tokens // 2, tokens - tokens // 2)
        for _ in range(2):
            answer = member.limits.take(LIMITS, shape, self.now)
            if isinstance(answer, BorrowRequest):
                self.exchange(member, answer, loss)
            elif isinstance(answer, Admitted):
                self.used += tokens
                member.in_hand -= tokens
                self.open_requests.append((member, answer))
                return

    def settle(self, share: float) -> None:
        if self.open_requests:
            member, admitted = self.open_requests.pop(0)
            output = int(admitted.max_output_tokens * share)
            member.limits.settle(admitted, input_tokens=admitted.input_tokens, output_tokens=output)
            self.used -= admitted.max_output_tokens - output
            member.in_hand += admitted.max_output_tokens - output


events = st.tuples(
    st.sampled_from(["take", "take", "take", "settle", "renew", "renew", "crash"]),
    st.integers(0, GATEWAYS - 1),
    st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0, 30.0]),
    st.sampled_from([0.0] * 9 + [-4.0, 4.0, -3600.0, 3600.0]),
    st.sampled_from([1, 10, 100, 600]),
    st.sampled_from(["none"] * 5 + ["request", "answer"]),
)


@given(st.lists(events, max_size=60))
def test_gateways_together_use_no_more_than_the_limit_and_what_they_held(
    schedule: list[tuple[str, int, float, float, int, str]],
) -> None:
    fleet = Fleet()
    for action, index, seconds, clock_jump, tokens, loss in schedule:
        fleet.advance(seconds, clock_jump)
        member = fleet.members[index]
        if action == "take":
            fleet.take(member, tokens, loss)
        elif action == "settle":
            fleet.settle(share=tokens / 600)
        elif action == "renew":
            fleet.exchange(member, member.limits.renewal(fleet.now), loss)
        else:
            fleet.members[index] = Member()
        assert member.in_hand >= -1e-6
        in_hand = sum(each.in_hand for each in fleet.members)
        fleet.history.append((fleet.refilled, fleet.used, in_hand))

    assert fleet.used <= TOKENS.amount + fleet.refilled + 1e-6
    for start, (refilled, used, in_hand) in enumerate(fleet.history):
        for later_refilled, later_used, _ in fleet.history[start:]:
            assert later_used - used <= TOKENS.amount + later_refilled - refilled + in_hand + 1e-6


@dataclass(slots=True)
class SlotGateway:
    """A gateway with its requests, its questions on their way, and the answers to them."""

    name: str
    account: SlotAccount
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    open_requests: list[Admitted] = field(default_factory=list)
    questions: deque[BorrowRequest] = field(default_factory=deque)
    answers: deque[list[SlotGrant]] = field(default_factory=deque)

    def act(self, action: str, now: float) -> None:
        if action == "take":
            answer = self.limits.take(SLOTS, a_request(), now)
            if isinstance(answer, Admitted):
                self.open_requests.append(answer)
            elif isinstance(answer, BorrowRequest):
                self.questions.append(answer)
        elif action == "settle" and self.open_requests:
            admitted = self.open_requests.pop()
            self.limits.settle(admitted, input_tokens=1, output_tokens=1)
        elif action == "ask" and self.questions:
            slots = self.questions.popleft().slots
            self.answers.append([self.account.lease(self.name, each, now) for each in slots])
        elif action == "answer" and self.answers:
            self.limits.receive(Lease(slots=tuple(self.answers.popleft())), now)


slot_events = st.tuples(
    st.sampled_from(["take", "take", "take", "settle", "ask", "ask", "answer", "answer", "crash"]),
    st.integers(0, GATEWAYS - 1),
    st.sampled_from([0.0, 0.01, 0.1]),
)


@given(st.lists(slot_events, max_size=150))
def test_gateways_never_have_more_concurrent_requests_than_the_limit(
    schedule: list[tuple[str, int, float]],
) -> None:
    account, names, now, next_renewal = SlotAccount(), count(), 0.0, 0.5
    gateways = [SlotGateway(f"gateway-{next(names)}", account) for _ in range(GATEWAYS)]
    for action, index, seconds in schedule:
        now += seconds
        if now >= next_renewal:
            next_renewal += 0.5
            for gateway in gateways:
                gateway.questions.append(gateway.limits.renewal(now))
        if action == "crash":
            gateways[index] = SlotGateway(f"gateway-{next(names)}", account)
        else:
            gateways[index].act(action, now)
        assert sum(len(each.open_requests) for each in gateways) <= 5
