"""What the sender of a request may spend: requests and tokens of each limit that holds for him."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from tessera.adapters.clock import Clock
from tessera.domain.charge.prices import most_charge
from tessera.domain.charge.scopes import OTHER_MONTH
from tessera.domain.gateway.directory import Directory, Identity, ModelChanges, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits, LimitRefusal
from tessera.domain.limits.scopes import ApplicableLimits, applicable_limits
from tessera.domain.usage.payer import KnownWork
from tessera.gateway.fleet.replicas import Replicas
from tessera.gateway.identify.senders import RecordFields
from tessera.gateway.refusals import Headers, RequestError, allowance_headers, over_limit
from tessera.gateway.reserve.charges import (
    BUDGET_WAIT_SECONDS,
    Charges,
    ChargeTerms,
    RequestCharge,
)
from tessera.gateway.resolve.chooser import Chosen

_MAX_CACHED_LIMITS = 10_000
# Of one request, with the limits that others take in between.
_MAX_BORROWINGS = 8
# The operator lends money for providers within so long after a request needed it.
LENDING_SECONDS = 5.0
# Of a request that reaches no engine.
_NO_TOKENS = RequestShape(model="", input_tokens=0, max_output_tokens=0)


@dataclass(slots=True, kw_only=True)
class Reserved:
    """A request that is within all limits of its sender, which hold it until its engine's end."""

    chosen: Chosen
    shape: RequestShape
    """With the priority in which it can wait."""
    admitted: Admitted
    charge: RequestCharge | None = None
    """None where nothing is charged: no price, and no limit of charges."""
    cost: RequestCharge | None = None
    """The same by what a provider bills; None of a service."""

    @property
    def model(self) -> OfferedModel:
        """Return the model that is to answer it."""
        return self.chosen.model

    @property
    def max_output_tokens(self) -> int | None:
        """Return what is left of the tokens that the client asked for; None for all of them."""
        reduced, charge = self.admitted.max_output_tokens, self.charge
        if charge is not None and charge.sent_output is not None:
            return charge.sent_output
        return reduced if reduced < self.shape.max_output_tokens else None

    @property
    def charges(self) -> Sequence[RequestCharge]:
        """Return what is reserved of money, each in a currency of its own."""
        return tuple(each for each in (self.charge, self.cost) if each is not None)

    @property
    def headers(self) -> Headers:
        """Return what the client learns about its limits, and in the end about its charge."""
        headers = allowance_headers(self.admitted.requests, self.admitted.tokens)
        return headers if self.charge is None else [*headers, *self.charge.headers]

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        return self.chosen.record_fields() | self.money_fields()

    def money_fields(self, work: KnownWork | None = None) -> RecordFields:
        """Return what is recorded of its money: settled, or as if it ended now after this work, of
        which a provider may bill all that was reserved.
        """
        fields = {} if self.charge is None else self.charge.record_fields(work)
        if self.cost is not None:
            most = None if work is None else self.cost.most(self.cost.max_output)
            nanos, accounts = self.cost.amounts(most)
            fields["cost_nanos"], fields["cost_currency"] = nanos, self.cost.price.currency
            # All of it is of the month in which the request began.
            accounts = tuple(each for each in accounts if each[0] != OTHER_MONTH)
            fields["charges"] = (*fields.get("charges", ()), *accounts)
        return fields


class Reservations:
    """Reserves of the limits that this process holds, and borrows where they do not suffice."""

    def __init__(
        self,
        replicas: Replicas,
        borrow: Callable[[BorrowRequest], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        """Take `borrow`, which exchanges portions of limits with the accounts.

        It returns False if the answer did not come.
        """
        self.limits = GatewayLimits()
        self.charges = Charges(replicas, borrow, clock)
        self._replicas, self._borrow, self._clock = replicas, borrow, clock
        self._directory = Directory()
        self._applicable: dict[tuple[str | None, ...], ApplicableLimits] = {}
        self.count_prompt: Callable[[Chosen], Awaitable[int | None]] = _uncounted
        """Returns the most tokens of a prompt as an engine reads it; None where none says."""

    def update(self, directory: Directory, changes: ModelChanges, *, forget: bool) -> None:
        """Take a directory; `forget` all limits where more than models differs in it."""
        self._directory = directory
        self.charges.update(directory, changes)
        if forget:
            self._applicable = {}
        uids = {model.uid for model in (*changes.old, *changes.new)}
        for key in [key for key in self._applicable if key[-1] in uids]:
            del self._applicable[key]

    async def reserve(self, chosen: Chosen, *, whole: bool = False) -> Reserved:
        """Return the request within its limits.

        Its money is for its `whole` answer at once, as always at a provider, or what is left of it,
        perhaps after a wait. Raises RequestError with status 400, 403, 429 or 503.
        """
        identity, model = chosen.received.identified.identity, chosen.model
        is_asleep = model.is_asleep and not self._replicas.ready_count(model)
        if is_asleep and not model.may_wake(identity.tenant):
            # It is no demand, which would start a replica.
            raise RequestError(RequestReason.SERVICE_ASLEEP, model.service, identity.tenant)
        shape = self._with_its_priority(model, chosen.shape)
        terms, cost_terms = self.charges.terms(chosen), self.charges.cost_terms(chosen)
        admitted = await self._within(self._limits_of(identity, model), shape)
        chosen.admitted = admitted
        reserved = Reserved(chosen=chosen, shape=shape, admitted=admitted)
        try:
            if terms is not None:
                whole = whole or cost_terms is not None
                reserved.charge = await self._charged(reserved, terms, whole=whole)
            if cost_terms is not None:
                reserved.cost = await self._lent(reserved, cost_terms)
        except BaseException:
            self.settle(reserved, input_tokens=0, output_tokens=0)
            raise
        return reserved

    async def count(self, identity: Identity) -> Headers:
        """Count a request that names no model in the limits of requests of its sender.

        Return what the client learns about them; raises RequestError with status 429 or 503.
        """
        limits = self._limits_of(identity, None)
        admitted = await self._within(limits, _NO_TOKENS)
        return allowance_headers(admitted.requests, None)

    def settle(self, reserved: Reserved, *, input_tokens: int, output_tokens: int) -> None:
        """Spend so many tokens of what was reserved, and give the rest back."""
        input_tokens += reserved.chosen.counted_tokens
        self.limits.settle(
            reserved.admitted, input_tokens=input_tokens, output_tokens=output_tokens
        )
        for charge in reserved.charges:
            self.charges.settle(charge)

    async def _charged(
        self, reserved: Reserved, terms: ChargeTerms, *, whole: bool
    ) -> RequestCharge:
        """Reserve the money of a request; where the bound of its prompt refuses it, an engine is
        asked once how many tokens that has.

        Raises RequestError with status 429 or 503.
        """
        chosen = reserved.chosen
        bound, began = chosen.size.bound(chosen.model.max_model_len), self._clock.monotonic()
        try:
            return await self.charges.reserve(chosen, terms, bound, whole=whole)
        except RequestError as error:
            prompt = most_charge(terms.price, input_tokens=bound, output=0)
            # Without money for the answer no count helps: engines count nothing for nothing.
            is_countable = error.missing is not None and error.missing < prompt
            if not is_countable or chosen.model.outside is not None:
                raise
            # Who leaves meanwhile has it counted as well.
            chosen.counted_tokens = chosen.shape.input_tokens
            tokens = await self.count_prompt(chosen)
            if tokens is None or not 0 < tokens < bound:
                chosen.counted_tokens = 0
                raise
            chosen.counted_tokens = tokens
        rest = max(0.0, BUDGET_WAIT_SECONDS - (self._clock.monotonic() - began))
        return await self.charges.reserve(chosen, terms, tokens, whole=whole, wait_seconds=rest)

    async def _lent(self, reserved: Reserved, terms: ChargeTerms) -> RequestCharge:
        """Reserve what a provider may bill.

        A request that no other target answers waits until the operator lends that, which it hears
        of first. Raises RequestError with status 429 or 503.
        """
        chosen, charges = reserved.chosen, self.charges
        routed, asked_at = chosen.received.routed, self._clock.monotonic()
        while True:
            try:
                return await self._charged(reserved, terms, whole=True)
            except RequestError as error:
                now = self._clock.monotonic()
                known = [charges.lending.known(scope, now) for scope in terms.scopes]
                # Once more is not lent, later requests do not wait for it again.
                asked_at = min([asked_at, *(each.missing_at for each in known if each.missing)])
                seconds = asked_at + LENDING_SECONDS - now
                is_alone = routed is not None and routed.gives_less
                if error.missing is None or not is_alone or seconds <= 0:
                    raise
            await charges.wait(seconds)
            terms = charges.cost_terms(chosen) or terms

    def _with_its_priority(self, model: OfferedModel, shape: RequestShape) -> RequestShape:
        """Return the request as it can wait: while its prompt is read, all others have to."""
        if not shape.priority.yields:
            return shape
        seconds, most = self._replicas.read_seconds(model, shape), model.ttft_seconds / 2
        if seconds <= most:
            return shape
        if shape.priority is RequestPriority.SHEDDABLE:
            details = shape.input_tokens, f"{seconds:.1f}", f"{most:g}"
            raise RequestError(RequestReason.SHEDDABLE_TOO_LONG, model.service, *details)
        return replace(shape, priority=RequestPriority.DEFAULT)

    async def _within(self, limits: ApplicableLimits, shape: RequestShape) -> Admitted:
        for _ in range(_MAX_BORROWINGS):
            answer = self.limits.take(limits, shape, self._clock.monotonic())
            if isinstance(answer, Admitted):
                return answer
            if isinstance(answer, LimitRefusal):
                raise over_limit(answer)
            if not await self._borrow(answer):
                break
        raise RequestError(RequestReason.LIMITS_UNAVAILABLE)

    def _limits_of(self, identity: Identity, model: OfferedModel | None) -> ApplicableLimits:
        # Most keys have no limits of their own: those of their tenants are the same.
        own_key = None if identity.limits is None else identity.key
        key = (identity.tenant, identity.team, own_key, model.uid if model is not None else None)
        limits = self._applicable.get(key)
        if limits is None:
            if len(self._applicable) >= _MAX_CACHED_LIMITS:
                self._applicable.clear()
            limits = applicable_limits(self._directory, identity, model)
            self._applicable[key] = limits
        return limits


async def _uncounted(_: Chosen) -> int | None:
    return None
