"""What charges cost a gateway, and how far a limit is spent before it refuses.

64 streams at four gateways spend a limit of 1,000 mean charges: prompts of 1,200 tokens, answers
of 250 in the mean and at most 4,096, a token every 33 ms, output at 4 times the price of input. A
stream first reserves the P95 of answers, then 256 tokens whenever 64 are left; what is reserved by
others it awaits for 30 seconds. Agents are the same with prompts of 100,000 tokens. Rows are those
of accounts that 2,000 requests a second of 300 keys update. The last line is `BENCH {json}`.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from figures import benchmark
from tessera.api.tenant_budget import WindowName
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import ChargeAsk
from tessera.domain.charge.gateway_charges import (
    ChargeRefusal,
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
)
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope

_EPOCH = 1_800_014_400.0
_GATEWAYS, _STREAMS = 4, 64
_PROMPT, _AGENT_PROMPT = 1200, 100_000
_MEAN_OUTPUT, _MAX_OUTPUT, _P95_OUTPUT = 250, 4096, 750
_OUTPUT_PRICE = 4
_ITL_SECONDS = 0.033
_TOP_UP, _TOP_UP_BEFORE = 256, 64
_BUDGET_WAIT_SECONDS, _RETRY_SECONDS = 30.0, 0.25


def _scope(name: str, window: WindowName, amount: int) -> ChargeScope:
    limit = ChargeLimit(
        budget="team-a",
        generation=1,
        name=name,
        window=window,
        amount=amount,
        currency="USD",
        time_zone="Europe/Berlin",
    )
    return ChargeScope(key=f"team-a/{name}", limit=limit)


@dataclass(slots=True)
class _Store:
    accounts: dict[tuple[str, int], ChargeAccount] = field(default_factory=dict)
    rows: int = 0

    def send(
        self, name: str, charges: GatewayCharges, asks: Sequence[ChargeAsk], now: float
    ) -> None:
        while asks:
            self.rows += len(asks)
            answers = [
                self.accounts.setdefault((ask.scope.key, ask.start), ChargeAccount()).exchange(
                    name, ask, now + _EPOCH
                )
                for ask in asks
            ]
            asks = charges.receive(answers, now)


def _reserved(answer: ChargeReservation | ChargesNeeded | ChargeRefusal) -> ChargeReservation:
    if not isinstance(answer, ChargeReservation):
        raise TypeError(answer)
    return answer


def _reserve_settle_us() -> float:
    """Return the CPU time of reserving and settling one request in 5 scopes of 2 windows each."""
    scopes = tuple(
        _scope(f"{number}-{window}", window, 10**18)
        for number in range(5)
        for window in ("Day", "Month")
    )
    charges, store, now = GatewayCharges(clock_offset=_EPOCH), _Store(), 0.0
    while isinstance(needed := charges.reserve(scopes, 10**9, 10**9, now), ChargesNeeded):
        store.send("gateway", charges, needed.asks, now)
    charges.settle(_reserved(needed), 0)
    count, seconds = 2000, []
    for _ in range(20):
        begun = time.process_time()
        for _ in range(count):
            charges.settle(_reserved(charges.reserve(scopes, 1000, 1000, now)), 500)
        seconds.append((time.process_time() - begun) / count)
    return min(seconds) * 1e6


@dataclass(slots=True, eq=False)
class _Stream:
    """A client that sends request after request."""

    gateway: int
    output: int = 0
    """Tokens that the engine is to make."""
    tokens: int = 0
    reservation: ChargeReservation | None = None
    since: float | None = None
    """When it began to wait for money."""
    retry_at: float = 0.0


@dataclass(slots=True)
class _Simulation:
    seed: int
    prompt: int = _PROMPT
    now: float = 0.0
    settled: int = 0
    ended: int = 0
    cuts_with_money: int = 0
    longest_wait: float = 0.0
    spent_at_refusal: int | None = None
    store: _Store = field(default_factory=_Store)
    gateways: list[GatewayCharges] = field(
        default_factory=lambda: [GatewayCharges(clock_offset=_EPOCH) for _ in range(_GATEWAYS)]
    )

    @property
    def limit(self) -> int:
        return 1000 * self._charge(_MEAN_OUTPUT)

    def _charge(self, tokens: int) -> int:
        return self.prompt + tokens * _OUTPUT_PRICE

    def run(self) -> "_Simulation":
        """Play until all requests are refused."""
        rng = random.Random(self.seed)  # noqa: S311 - the same streams each time
        scopes = (_scope("day", "Day", self.limit),)
        streams = [_Stream(index % _GATEWAYS) for index in range(_STREAMS)]
        renew_at = 0.5
        while streams:
            self.now += _ITL_SECONDS
            if self.now >= renew_at:
                renew_at += 0.5
                for index, charges in enumerate(self.gateways):
                    self._send(index, charges.renewal(self.now))
            rng.shuffle(streams)
            streams = [each for each in streams if self._is_served(each, scopes, rng)]
        return self

    def _send(self, gateway: int, asks: Sequence[ChargeAsk]) -> None:
        self.store.send(f"gateway-{gateway}", self.gateways[gateway], asks, self.now)

    def _is_served(
        self, stream: _Stream, scopes: tuple[ChargeScope, ...], rng: random.Random
    ) -> bool:
        """Make one token, or reserve for the next request; say whether its client goes on."""
        reservation = stream.reservation
        if reservation is None:
            if not stream.output:
                stream.output = min(_MAX_OUTPUT, 1 + int(rng.expovariate(1 / _MEAN_OUTPUT)))
            return self._is_begun(stream, scopes)
        if stream.since is None:
            stream.tokens += 1
            if stream.tokens == stream.output:
                self._end(stream, reservation)
                return True
        left = reservation.nanos - self._charge(stream.tokens)
        if left <= _TOP_UP_BEFORE * _OUTPUT_PRICE:
            self._top_up(stream, reservation, left)
        return True

    def _is_begun(self, stream: _Stream, scopes: tuple[ChargeScope, ...]) -> bool:
        nanos = self._charge(_P95_OUTPUT)
        answer = self._try(stream, lambda charges: charges.reserve(scopes, nanos, nanos, self.now))
        if isinstance(answer, ChargeReservation):
            stream.reservation, stream.tokens, stream.since = answer, 0, None
        elif answer is not None:
            self.spent_at_refusal = self.spent_at_refusal or self.settled
            return False
        return True

    def _top_up(self, stream: _Stream, reservation: ChargeReservation, left: int) -> None:
        nanos = _TOP_UP * _OUTPUT_PRICE
        answer = self._try(stream, lambda charges: charges.top_up(reservation, nanos, self.now))
        if isinstance(answer, ChargeReservation) or left >= _OUTPUT_PRICE:
            # What it has it uses before it waits.
            stream.since = None
        elif answer is not None:
            self.cuts_with_money += self.settled < 0.95 * self.limit
            self._end(stream, reservation)

    def _try(
        self,
        stream: _Stream,
        attempt: Callable[[GatewayCharges], ChargeReservation | ChargesNeeded | ChargeRefusal],
    ) -> ChargeReservation | ChargesNeeded | ChargeRefusal | None:
        """Return what came of it; None while it waits."""
        if self.now < stream.retry_at:
            return None
        stream.since = self.now if stream.since is None else stream.since
        waited = self.now - stream.since
        self.longest_wait = max(self.longest_wait, waited)
        for _ in range(100):
            answer = attempt(self.gateways[stream.gateway])
            if not isinstance(answer, ChargesNeeded):
                break
            if not answer.asks:
                stream.retry_at = self.now + answer.wait_seconds
                return None
            self._send(stream.gateway, answer.asks)
        is_waiting = isinstance(answer, ChargeRefusal) and answer.is_reserved
        if is_waiting and waited < _BUDGET_WAIT_SECONDS:
            stream.retry_at = self.now + _RETRY_SECONDS
            return None
        return answer

    def _end(self, stream: _Stream, reservation: ChargeReservation) -> None:
        charge = self._charge(stream.tokens)
        paid = self.gateways[stream.gateway].settle(reservation, charge)
        if [nanos for _, _, nanos in paid] != [charge]:
            raise ValueError(f"{charge} is more than was reserved")
        self.settled += charge
        self.ended += 1
        stream.reservation, stream.since, stream.output = None, None, 0


def _account_rows_per_request(seconds: int) -> float:
    """Return updates of accounts for each request, of a limit of the tenant and one of each key."""
    rng = random.Random(0)  # noqa: S311 - the same requests each time
    tenant = _scope("month", "Month", 10**15)
    keys = [_scope(f"each-key/Key/{number}", "Month", 10**15) for number in range(300)]
    store, gateways = _Store(), [GatewayCharges(clock_offset=_EPOCH) for _ in range(_GATEWAYS)]
    running: deque[tuple[float, GatewayCharges, ChargeReservation]] = deque()
    for tick in range(seconds * 100):
        now = tick / 100
        while running and running[0][0] <= now:
            _, charges, reservation = running.popleft()
            charges.settle(reservation, rng.randrange(reservation.nanos))
        for index, charges in enumerate(gateways):
            if tick % 50 == index:
                store.send(f"gateway-{index}", charges, charges.renewal(now), now)
            for _ in range(5):
                scopes = tenant, rng.choice(keys)
                answer = charges.reserve(scopes, 10**6, 10**6, now)
                if isinstance(answer, ChargesNeeded):
                    store.send(f"gateway-{index}", charges, answer.asks, now)
                    answer = charges.reserve(scopes, 10**6, 10**6, now)
                running.append((now + 5, charges, _reserved(answer)))
    return store.rows / (seconds * 2000)


def measure(seeds: int = 3, seconds: int = 20) -> dict[str, object]:
    """Time reservations, and play the streams for several seeds; the worst of them counts."""
    streams = [_Simulation(seed).run() for seed in range(seeds)]
    agents = [_Simulation(seed, _AGENT_PROMPT).run() for seed in range(seeds)]
    played = streams + agents
    for each in played:
        print(
            f"prompts of {each.prompt} tokens, seed {each.seed}: {each.ended} requests"
            f" in {each.now:.0f} s, longest wait {each.longest_wait:.1f} s"
        )
    return {
        "reserve_settle_us": round(_reserve_settle_us(), 2),
        "spent_share_at_first_refusal": round(
            min((each.spent_at_refusal or 0) / each.limit for each in streams), 4
        ),
        "agents_spent_share_at_first_refusal": round(
            min((each.spent_at_refusal or 0) / each.limit for each in agents), 4
        ),
        "spent_share": round(min(each.settled / each.limit for each in played), 4),
        "cut_while_5_percent_left": sum(each.cuts_with_money for each in played),
        "overshoot_nano": max(0, *(each.settled - each.limit for each in played)),
        "account_rows_per_request": round(_account_rows_per_request(seconds), 3),
    }


if __name__ == "__main__":
    benchmark(
        measure, short={"seeds": 1, "seconds": 1}, seconds={"help": "of requests that update rows"}
    )
