"""The money of a request: reserved before an engine gets it, more while its stream runs."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from tessera.adapters.clock import Clock
from tessera.domain.charge.answer_lengths import AnswerLengths
from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk
from tessera.domain.charge.gateway_charges import (
    ChargeRefusal,
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
    LentCharges,
)
from tessera.domain.charge.prices import RequestPrice, charge_of, most_charge
from tessera.domain.charge.scopes import ChargeScope, MemberKind
from tessera.domain.gateway.directory import (
    Directory,
    Identity,
    ModelChanges,
    OfferedModel,
    TenantLimits,
)
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.limits.charges import (
    EVALUATION_CLASS,
    charge_scopes,
    outside_scopes,
    price_for,
)
from tessera.domain.usage.payer import ChargeEnd, KnownWork, TokenParts, paid_tokens
from tessera.gateway.bodies.parsing import RequestSummary
from tessera.gateway.bodies.prompt_size import LARGEST_CONTEXT
from tessera.gateway.fleet.replicas import Replicas
from tessera.gateway.identify.senders import RecordFields
from tessera.gateway.refusals import (
    Headers,
    RequestError,
    amount_text,
    foreign_cost,
    no_price,
    over_budget,
)
from tessera.gateway.resolve.chooser import Chosen
from tessera.gateway.resolve.shapes import likely_tokens

# That a request waits for what others have reserved.
BUDGET_WAIT_SECONDS = 30.0
# That a new one waits for an account; a stream that runs waits longer.
ACCOUNT_SECONDS = 3.0
# Of a stream: so many tokens are reserved at a time, and so many before they are used.
TOP_UP_TOKENS, TOP_UP_BEFORE = 256, 64
# Until what waits asks again, unless something returns before.
_ASK_AGAIN_SECONDS = 0.25
_LEAST_WAIT_SECONDS = 0.05
_MILLION, _DAY = 10**6, 86_400.0
_PRICE_SECONDS = 1.0
_PERSONAL = (MemberKind.KEY, MemberKind.USER)
_MAX_KNOWN_TERMS = 10_000


class ChargeTerms(NamedTuple):
    """What a request pays by, and the limits that hold for it."""

    price: RequestPrice
    scopes: tuple[ChargeScope, ...]


class _KnownTerms(NamedTuple):
    """Those of one kind of requests until a moment, in Unix seconds."""

    terms: ChargeTerms | None
    """None without a price."""
    scopes: tuple[ChargeScope, ...]
    until: float


@dataclass(slots=True, kw_only=True, eq=False)
class RequestCharge:
    """What one request pays, and what is reserved for it."""

    price: RequestPrice
    service_class: str
    owner: str | None
    """Tenant of the service."""
    believes_engine: bool
    """The engine is of the sender's own tenant, or of a provider, whose bill is by its count."""
    prompt_bound: int
    """Tokens that the prompt has at most."""
    prompt_tokens: int
    """About those that it has."""
    max_output: int
    """Tokens that the answer may have, of all choices together."""
    choices: int
    reservation: ChargeReservation | None
    """None where no limit holds for it."""
    month: int = 0
    """In which it began."""
    reserved: int = 0
    """Nano-units."""
    is_reduced: bool = False
    """It may have fewer tokens than was asked for, since no more money is left."""
    sent_output: int | None = None
    """Most tokens of all choices that its engine is told; None where the client's count."""
    charge: int | None = None
    """Nano-units; None until an engine's end."""
    charges: tuple[tuple[str, int, int], ...] = ()
    """The accounts that pay them."""
    waste: int = 0
    """Nano-units of what engines computed and it does not pay."""

    def watches(self, request: RequestSummary) -> bool:
        """Return whether the stream of a request ends by its money, or shows its cost."""
        return request.streams and (self.reservation is not None or request.usage_asked)

    @property
    def paid_output(self) -> int:
        """Return for how many tokens of the answer the reservation is enough."""
        return self.affordable(self.reserved)

    def affordable(self, nanos: int) -> int:
        """Return how many tokens of the answer so much pays, beside the prompt."""
        if self.reservation is None:
            return self.max_output
        prompt = most_charge(self.price, input_tokens=self.prompt_bound, output=0)
        million = most_charge(self.price, input_tokens=self.prompt_bound, output=_MILLION) - prompt
        if not million:
            return self.max_output
        return max(0, min((nanos - prompt) * _MILLION // million, self.max_output))

    def limit_output(self, wanted: int, is_unbounded: bool) -> None:
        """Let the answer have no more tokens than are paid; all of them for so many nano-units."""
        paid = self.max_output if self.reserved >= wanted else self.paid_output
        self.is_reduced = paid < self.max_output
        if self.is_reduced or is_unbounded:
            # Each choice has as many.
            self.max_output = self.sent_output = max(paid - paid % self.choices, self.choices)

    def most(self, output: int) -> int:
        """Return the most nano-units of an answer of so many tokens, at most those it may have."""
        output = min(output, self.max_output)
        return most_charge(self.price, input_tokens=self.prompt_bound, output=output)

    def cost(self, work: KnownWork) -> tuple[int, bool]:
        """Return the nano-units of what is known, and whether the gateway had to estimate them."""
        (input_tokens, cached, output, reasoning), flagged = paid_tokens(work)
        if not (input_tokens or output):
            return 0, flagged
        nanos = charge_of(
            self.price,
            input_tokens=input_tokens,
            cached=cached,
            output=output,
            reasoning=reasoning,
            extras=work.extras,
        )
        return nanos, flagged

    def note_waste(self, unpaid: TokenParts, end: ChargeEnd) -> None:
        """Take what engines computed of which it pays a part at most, once it has its charge."""
        input_tokens, cached, output, reasoning = unpaid
        total = charge_of(
            self.price,
            input_tokens=input_tokens,
            cached=cached,
            output=output,
            reasoning=reasoning,
        )
        paid = (self.charge or 0) if end is ChargeEnd.FAILURE else 0
        self.waste = max(0, total - max(paid, self.price.per_request))

    @property
    def headers(self) -> Headers:
        """Return what the client of an answer that is no stream learns."""
        headers = []
        if self.charge is not None:
            amount = f"{amount_text(self.charge)} {self.price.currency}"
            headers.append((b"x-tessera-charge", amount.encode()))
        if self.is_reduced:
            headers.append((b"x-tessera-max-tokens", b"%d" % (self.max_output // self.choices)))
        return headers

    def amounts(self, nanos: int | None = None) -> tuple[int, tuple[tuple[str, int, int], ...]]:
        """Return its nano-units, and the accounts that pay them: settled, or if it ended now."""
        if nanos is None:
            return self.charge or 0, self.charges
        if self.reservation is None:
            return nanos, self.charges
        nanos = min(nanos, self.reserved)
        charges = _divided(self.reservation, nanos)
        return nanos, charges + self.reservation.other_months(self.month, nanos)

    def record_fields(self, work: KnownWork | None = None) -> RecordFields:
        """Return what is recorded of it: settled, or as if it ended now after this work."""
        nanos, charges = self.amounts(None if work is None else self.cost(work)[0])
        return {
            "charge_nanos": nanos,
            "currency": self.price.currency,
            "price_list": self.price.price_list,
            "charges": charges,
            "owner": self.owner,
            "service_class": self.service_class,
            "waste_nanos": self.waste,
        }


class Charges:
    """Reserves money that accounts lent to this process, and asks where it does not suffice."""

    def __init__(
        self,
        replicas: Replicas,
        borrow: Callable[[BorrowRequest], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        """Take `borrow`, which brings asks to the accounts and their answers to `receive`.

        It returns False if no answer came.
        """
        self._replicas, self._borrow, self._clock = replicas, borrow, clock
        offset = clock.time_ns() / 1e9 - clock.monotonic()
        self.lending = GatewayCharges(clock_offset=offset)
        self._directory = Directory()
        self._terms: dict[tuple[str | None, ...], _KnownTerms] = {}
        self._personal: dict[str, bool] = {}
        """Whether limits of a tenant tell keys or users apart."""
        self._lengths = defaultdict[str, AnswerLengths](AnswerLengths)
        self._changed, self._waiting = asyncio.Event(), 0
        self._asking = set[asyncio.Future[bool]]()
        self._lowered: tuple[ChargeScope, ...] = ()
        """Of which accounts the operator waits to hear that they have less to lend."""

    def update(self, directory: Directory, changes: ModelChanges) -> None:
        """Take a directory."""
        self._directory, self._terms, self._personal = directory, {}, {}
        self._lowered = tuple(
            scope
            for tenant in directory.tenants.values()
            for scope in (outside_scopes(tenant) if tenant.outside else ())
            if scope.limit.is_lowered
        )
        self._wake()
        for model in changes.removed:
            self._lengths.pop(model.uid, None)

    def renewal(self) -> tuple[ChargeAsk, ...]:
        """Return what accounts are to hear now, also of limits that no request here uses."""
        now = self._clock.monotonic()
        for scope in self._lowered:
            self.lending.known(scope, now).needed_at = now
        return self.lending.renewal(now)

    def receive(self, answers: Sequence[ChargeAnswer]) -> tuple[ChargeAsk, ...]:
        """Take what accounts answered; return what they are to hear at once."""
        asks = self.lending.receive(answers, self._clock.monotonic())
        self._wake()
        return asks

    def terms(self, chosen: Chosen) -> ChargeTerms | None:
        """Return what a request pays by; None where nothing is charged and no limit holds.

        Raises RequestError with status 403 where a limit holds and there is no price.
        """
        directory = self._directory
        identity, name = chosen.received.identified.identity, chosen.received.model
        tenant = directory.tenants.get(identity.tenant)
        if tenant is None or not chosen.summary.computes:
            return None
        has_limits = bool(tenant.charge_limits) or identity.budget is not None
        if not has_limits and not directory.prices.versions:
            return None
        # Of most budgets no limit tells keys and users apart.
        is_personal = identity.budget is not None or self._is_personal(tenant)
        sender = (identity.key, identity.user) if is_personal else (None, None)
        key = (identity.tenant, identity.team, *sender, chosen.model.uid, name)
        at = self._clock.monotonic() + self.lending.clock_offset
        known = self._terms.get(key)
        if known is None or not known.until - _PRICE_SECONDS <= at < known.until:
            known = self._terms[key] = self._look_up(known, identity, chosen.model, name, at)
        if known.terms is None and known.scopes:
            raise no_price(known.scopes[0].limit, directory, chosen.model, name, at=at)
        return known.terms

    def cost_terms(self, chosen: Chosen) -> ChargeTerms | None:
        """Return by what a provider bills a request, and what limits that; None of a service.

        Raises RequestError with status 403 where the limit is in another currency.
        """
        outside = chosen.model.outside
        if outside is None:
            return None
        tenant = self._directory.tenants.get(chosen.received.identified.identity.tenant)
        scopes = () if tenant is None else outside_scopes(tenant)
        if scopes and scopes[0].limit.currency != outside.cost.currency:
            raise foreign_cost(scopes[0].limit, outside)
        return ChargeTerms(outside.cost, scopes)

    def _look_up(
        self,
        known: _KnownTerms | None,
        identity: Identity,
        model: OfferedModel,
        name: str,
        at: float,
    ) -> _KnownTerms:
        """Return what requests pay by: a price is looked up each second, and each day of UTC."""
        if len(self._terms) >= _MAX_KNOWN_TERMS:
            self._terms.clear()
        directory = self._directory
        price = price_for(directory, identity.tenant, model, name, at)
        scopes = known.scopes if known else charge_scopes(directory, identity, model, name)
        terms = None if price is None else ChargeTerms(price, scopes)
        return _KnownTerms(terms, scopes, min(at + _PRICE_SECONDS, at - at % _DAY + _DAY))

    async def reserve(
        self,
        chosen: Chosen,
        terms: ChargeTerms,
        prompt_bound: int,
        *,
        whole: bool = False,
        wait_seconds: float = BUDGET_WAIT_SECONDS,
    ) -> RequestCharge:
        """Reserve for a request that is within its limits, perhaps after a wait.

        Its prompt has at most `prompt_bound` tokens. Of a stream that is what a usual answer takes,
        of others their most tokens, or what is left; `whole` is their most tokens at once. Raises
        RequestError with status 429 or 503.
        """
        admitted = chosen.admitted
        assert admitted is not None  # noqa: S101 - its limits come first
        most_output = admitted.max_output_tokens
        model, shape, choices = chosen.model, chosen.shape, chosen.summary.choices
        if chosen.received.identified.path_item.stream is None:
            most_output = 0
        else:
            # Engines make a token even of `max_tokens: 0`; without any bound one is sent.
            is_unbounded = not most_output and chosen.summary.output_tokens is None
            most_output = LARGEST_CONTEXT * choices if is_unbounded else max(most_output, choices)
        means = self._replicas.means(model)
        identity = chosen.received.identified.identity
        is_evaluation = identity.evaluates is not None
        charge = RequestCharge(
            price=terms.price,
            service_class=EVALUATION_CLASS if is_evaluation else model.service_class,
            owner=model.tenant,
            believes_engine=model.outside is not None or model.tenant == identity.tenant,
            prompt_bound=prompt_bound,
            prompt_tokens=likely_tokens(shape.input_tokens, chosen.size, means),
            max_output=most_output,
            choices=choices,
            reservation=None,
        )
        if terms.scopes:
            usual_output = min(self._lengths[model.uid].p95 * choices, most_output)
            usual = wanted = charge.most(usual_output)
            if whole or (not shape.stream and usual_output < most_output):
                wanted = charge.most(most_output)
            if whole:
                usual, wait_seconds = wanted, 0.0
            charge.reservation = await self._obtain(
                terms.scopes, wanted, usual, wait_seconds=wait_seconds
            )
            charge.reserved = charge.reservation.nanos
            charge.month = self.lending.month_at(chosen.received.identified.started_at_ns / 1e9)
            if not shape.stream and most_output:
                charge.limit_output(wanted, chosen.summary.output_tokens is None)
        return charge

    def grow(self, charge: RequestCharge, nanos: int) -> bool:
        """Reserve so much in all, of what this gateway has; False where it has to ask for it."""
        if charge.reservation is not None and (more := nanos - charge.reserved) > 0:
            answer = self.lending.top_up(charge.reservation, more, self._clock.monotonic())
            if isinstance(answer, ChargesNeeded) and answer.asks:
                asking = asyncio.ensure_future(self._borrow(BorrowRequest(charges=answer.asks)))
                self._asking.add(asking)
                asking.add_done_callback(self._asking.discard)
            charge.reserved = charge.reservation.nanos
            return isinstance(answer, ChargeReservation)
        return True

    def shrink(self, charge: RequestCharge, prompt: int) -> None:
        """Give back what a prompt cannot need that has so many tokens."""
        before = charge.most(0)
        charge.prompt_bound = min(charge.prompt_bound, prompt)
        if charge.reservation is not None:
            self.lending.shrink(charge.reservation, before - charge.most(0))
            charge.reserved = charge.reservation.nanos
            self._wake()

    async def top_up(self, charge: RequestCharge, output: int) -> None:
        """Reserve for more than so many tokens of the answer, perhaps after a wait.

        Where less is left, that is for so many at least. Raises RequestError with status 429 or
        503.
        """
        reservation, reserved = charge.reservation, charge.reserved
        more = charge.most(output + TOP_UP_TOKENS) - reserved
        if reservation is not None and more > 0:
            least = min(max(charge.most(output) - reserved, 1), more)
            await self._obtain(reservation.scopes, more, least, reservation)
            charge.reserved = reservation.nanos

    def price(self, charge: RequestCharge, work: KnownWork) -> tuple[int, bool]:
        """Return what work is charged, and whether it is an estimate; it is within what is
        reserved, to which is added what this gateway has where an engine counted more.
        """
        nanos, flagged = charge.cost(work)
        if nanos <= charge.reserved or self.grow(charge, nanos):
            return nanos, flagged
        return charge.reserved, True

    def settle(self, charge: RequestCharge) -> None:
        """End the reservation of a request with its charge; a second time changes nothing."""
        if charge.reservation is not None:
            nanos = charge.charge or 0
            paid = self.lending.settle(charge.reservation, nanos)
            charge.charges = paid + charge.reservation.other_months(charge.month, nanos)
            self._wake()

    def learn(self, model: OfferedModel, output: int) -> None:
        """Take the tokens of an answer that is complete."""
        self._lengths[model.uid].add(output)

    async def budget(self, identity: Identity) -> bytes:
        """Return what a sender, his team and his tenant have left, as clients get it.

        Raises RequestError with status 503 where it is not known.
        """
        scopes = charge_scopes(self._directory, identity, None, "")
        data = [_left(scope, await self._known(scope)) for scope in scopes]
        return msgspec.json.encode({"object": "list", "data": data})

    async def _known(self, scope: ChargeScope) -> LentCharges:
        """Return what this gateway has of an account, which it asks if it knows nothing of now."""
        now = self._clock.monotonic()
        if self.lending.known(scope, now).left(now) is None:
            try:
                self.lending.settle(await self._obtain((scope,), 1, 0, wait_seconds=0), 0)
            except RequestError as error:
                if error.reason is not RequestReason.BUDGET_EXCEEDED:
                    raise
        return self.lending.known(scope, self._clock.monotonic())

    async def _obtain(
        self,
        scopes: tuple[ChargeScope, ...],
        nanos: int,
        least: int,
        running: ChargeReservation | None = None,
        *,
        wait_seconds: float = BUDGET_WAIT_SECONDS,
    ) -> ChargeReservation:
        """Reserve for a new request, or more for a running one.

        Raises RequestError with status 429 or 503.
        """
        began = unanswered_from = self._clock.monotonic()
        account_seconds = ACCOUNT_SECONDS if running is None else wait_seconds
        while True:
            now = self._clock.monotonic()
            answer = (
                self.lending.reserve(scopes, nanos, least, now)
                if running is None
                else self.lending.top_up(running, nanos, now)
            )
            match answer:
                case ChargeReservation():
                    return answer
                case ChargeRefusal():
                    left, free = _left_beside(self.lending, running, answer, now)
                    if least <= free < nanos:
                        nanos = free
                        continue
                    is_hopeless = not answer.is_reserved or (running is not None and left < least)
                    # Where the rest is spread, a shorter wait is for nothing.
                    if is_hopeless or now + answer.throttled_seconds - began >= wait_seconds:
                        at = now + self.lending.clock_offset
                        raise over_budget(answer, needed=least, at=at)
                    unanswered_from = now
                    await self.wait(_ASK_AGAIN_SECONDS)
                case ChargesNeeded(asks=asks, wait_seconds=seconds):
                    if now - unanswered_from >= account_seconds:
                        raise RequestError(RequestReason.BUDGET_UNAVAILABLE, scopes[0].limit.budget)
                    if not asks:
                        await self.wait(max(seconds, _LEAST_WAIT_SECONDS))
                    elif not await self._borrow(BorrowRequest(charges=asks)):
                        raise RequestError(RequestReason.BUDGET_UNAVAILABLE, scopes[0].limit.budget)

    async def wait(self, seconds: float) -> None:
        """Wait until something is settled, answered or lent, or for so long."""
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
        finally:
            self._waiting -= 1

    def _wake(self) -> None:
        if self._waiting:
            self._changed.set()
            self._changed = asyncio.Event()

    def _is_personal(self, tenant: TenantLimits) -> bool:
        is_personal = self._personal.get(tenant.name)
        if is_personal is None:
            is_personal = any(limit.kind in _PERSONAL for limit in tenant.charge_limits)
            self._personal[tenant.name] = is_personal
        return is_personal


def _left_beside(
    lending: GatewayCharges, running: ChargeReservation | None, refusal: ChargeRefusal, now: float
) -> tuple[int, int]:
    """Return what a limit leaves a running request beside what it has, and how much is free now.

    What it has itself is no other's to return; of a new request nothing is known here.
    """
    if running is None:
        return refusal.left, 0
    windows = running.parts[-1][0]
    left = refusal.left - sum(nanos for lent, nanos, _ in running.parts if lent == windows)
    return left, min(left, *(lending.known(each, now).remaining() for each in running.scopes))


def _left(scope: ChargeScope, lent: LentCharges) -> dict[str, Any]:
    """Return what a client reads of a limit."""
    limit, answer, settled = scope.limit, lent.answer, lent.settled
    amount = limit.amount if answer is None else answer.limit
    return {
        "budget": limit.budget,
        "limit": limit.name,
        "scope": scope.key,
        "window": limit.window,
        "ends_at": lent.end,
        "amount": amount_text(amount),
        "spent": amount_text(settled),
        "left": amount_text(max(0, amount - settled)),
        "currency": limit.currency,
    }


def _divided(reservation: ChargeReservation, nanos: int) -> tuple[tuple[str, int, int], ...]:
    """Return which accounts would pay a charge now."""
    paid = []
    for lent, reserved, _ in reservation.parts:
        part = min(nanos, reserved)
        nanos -= part
        if part:
            paid += [(each.scope.key, each.start, part) for each in lent]
    return tuple(paid)
