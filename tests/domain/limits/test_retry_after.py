"""A refusal says when its request fits, by what all gateways have used together."""

from dataclasses import dataclass, field
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.limits.account import PORTION_SHARE
from tessera.domain.limits.gateway_limits import (
    REFUSAL_SECONDS,
    Admitted,
    GatewayLimits,
    LimitRefusal,
)
from tessera.domain.limits.scopes import Meter, ScopedLimit
from tests.domain.limits.accounts import Accounts, a_limit, limits_of
from tests.gateway_builders import a_request

_RENEWAL_SECONDS = 0.5
_DAY = 86_400
# Then gateways neither hold nor expect anything.
_QUIET_SECONDS = 6.0


@dataclass(slots=True)
class Gateways:
    """Two gateways and their store."""

    limit: ScopedLimit
    accounts: Accounts = field(default_factory=Accounts)
    members: tuple[GatewayLimits, GatewayLimits] = field(
        default_factory=lambda: (GatewayLimits(), GatewayLimits())
    )
    now: float = 0.0
    used: int = 0
    _next_renewal: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass, with the renewals of the gateways."""
        end = self.now + seconds
        while self._next_renewal <= end:
            self.now = self._next_renewal
            self._next_renewal += _RENEWAL_SECONDS
            for gateway in self.members:
                request = gateway.renewal(self.now)
                if request.portions:
                    self.accounts.exchange(gateway, request, self.now)
        self.now = end

    def take(self, index: int, tokens: int) -> Admitted | LimitRefusal:
        """Send a request whose tokens are all of its prompt."""
        request = a_request(tokens, 0)
        answer = self.accounts.take(
            self.members[index], limits_of(self.limit), request, self.now, str(index)
        )
        if isinstance(answer, Admitted):
            self.used += 1 if self.limit.meter is Meter.REQUESTS else tokens
        return answer


def test_a_refusal_does_not_count_what_another_gateway_took_since() -> None:
    gateways = Gateways(a_limit(Meter.REQUESTS, 40, _DAY))
    refusals = []
    for number in range(200):
        answer = gateways.take(number % 2, tokens=1)
        if isinstance(answer, LimitRefusal) and gateways.used == 40:
            refusals.append(answer)
        gateways.advance(0.03)
    assert len(refusals) > 100
    assert all(2160 - 6 <= _retry_after(refusal) <= 2160 for refusal in refusals)


def test_a_refusal_says_when_a_debt_will_be_paid() -> None:
    gateways = Gateways(a_limit(Meter.TOTAL_TOKENS, 40, _DAY))
    admitted = gateways.take(0, tokens=10)
    assert isinstance(admitted, Admitted)
    gateways.members[0].settle(admitted, input_tokens=10**9, output_tokens=0)
    gateways.advance(_QUIET_SECONDS)

    refusal = gateways.take(0, tokens=20)
    # 40 tokens are owed and 20 needed; 6 seconds have passed.
    assert _retry_after(refusal) == _DAY * 60 // 40 - 6
    assert isinstance(refusal, LimitRefusal)
    assert (refusal.remaining, refusal.tokens and refusal.tokens.remaining) == (0, 0)
    gateways.advance(_retry_after(refusal) - 1)
    assert isinstance(gateways.take(0, tokens=20), LimitRefusal)
    gateways.advance(1)
    assert isinstance(gateways.take(0, tokens=20), Admitted)


steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0]),
        st.integers(1, 40),
    ),
    max_size=80,
)
limits = st.builds(
    a_limit,
    st.sampled_from([Meter.REQUESTS, Meter.TOTAL_TOKENS]),
    st.sampled_from([40, 400]),
    st.sampled_from([60, 3600, _DAY]),
)


@given(limits, steps, st.sampled_from([REFUSAL_SECONDS, _QUIET_SECONDS]), st.integers(1, 40))
def test_a_request_fits_when_it_was_told_to_come_again_and_not_earlier(
    limit: ScopedLimit, schedule: list[tuple[int, float, int]], pause: float, tokens: int
) -> None:
    gateways = Gateways(limit)
    for index, seconds, of_step in schedule:
        gateways.advance(seconds)
        gateways.take(index, of_step)
    gateways.advance(pause)
    while isinstance(refusal := gateways.take(0, tokens), Admitted):
        pass
    # The other gateway still has its portion and a part of a token, or borrows one more; when it is
    # quiet, it has none.
    portion = PORTION_SHARE * limit.period_seconds + limit.period_seconds / limit.amount
    tolerance = 0.0 if pause == _QUIET_SECONDS else portion

    seconds = _retry_after(refusal)
    early = max(0.0, seconds - tolerance - 1.01)
    gateways.advance(early)
    assert isinstance(gateways.take(0, tokens), LimitRefusal)
    gateways.advance(seconds - early)
    answer = gateways.take(0, tokens)
    assert isinstance(answer, Admitted) or 0 < _retry_after(answer) <= ceil(tolerance)


def _retry_after(refusal: Admitted | LimitRefusal) -> int:
    """Return the whole seconds of the header."""
    assert isinstance(refusal, LimitRefusal)
    assert refusal.retry_after_seconds is not None
    return max(1, ceil(refusal.retry_after_seconds))
