"""What a call of a provider used, and what it costs by its bill and by the price of its model."""

from dataclasses import replace

from tessera.domain.usage.payer import ChargeEnd, paid_tokens
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.identify.senders import RecordFields
from tessera.gateway.outside.source import AskedOutside
from tessera.gateway.relay.paid import known_work
from tessera.gateway.reserve.charges import RequestCharge
from tessera.gateway.reserve.limits import Reservations


def end_outside(
    asked: AskedOutside, end: ChargeEnd, reservations: Reservations, now_ns: int
) -> tuple[TokenCounts, bool]:
    """Settle a call by what the provider bills, as far as that can be.

    Returns its tokens, within what could be, and whether the provider did not count these.

    Where it is not known what it did with the request, it may bill all that was reserved. Of a
    failure the sender pays what was delivered, as of that of an engine.
    """
    charge, cost, price = asked.reserved.charge, _cost(asked), reservations.charges.price
    is_failure = end is ChargeEnd.FAILURE
    if _is_known(asked, end):
        billed, unseen = ChargeEnd.ANSWER, 0
        if not (end is ChargeEnd.ANSWER or _is_counted(asked)):
            # The token under way is made as well.
            billed = ChargeEnd.REQUEST
            unseen = 1 if is_failure else 1 + _unseen(asked, now_ns)
        work = replace(known_work(asked, cost, billed, unseen), extras=asked.extras)
        tokens, estimated = paid_tokens(work)
        counts = TokenCounts(**tokens._asdict())
        cost.charge, is_less = price(cost, work)
        estimated |= (
            is_less
            or asked.is_doubtful
            or asked.extras.unexplained > 0
            or asked.extras.searches > asked.outside.cost.max_searches
        )
        if charge is not None:
            own_end = end if is_failure else billed
            charge.charge, _ = price(charge, known_work(asked, charge, own_end, unseen))
    else:
        counts, estimated = _most(cost), True
        cost.charge = cost.most(cost.max_output)
        if charge is not None:
            charge.charge = charge.most(charge.max_output)
    if _is_counted(asked):
        asked.compare(cost.charge)
    if charge is not None and is_failure and asked.first_token_ns is None:
        charge.charge = 0
    reservations.settle(asked.reserved, input_tokens=counts.input, output_tokens=counts.output)
    return counts, estimated


def killed_outside(asked: AskedOutside) -> tuple[TokenCounts, RecordFields]:
    """Return what a call used, and what is recorded of its money, if the gateway is killed now.

    What the provider bills is not known then: it is all that was reserved.
    """
    cost = _cost(asked)
    work = known_work(asked, cost, ChargeEnd.REQUEST, cost.max_output)
    work = replace(work, engines=1, prompt=cost.prompt_bound)
    return _most(cost), asked.reserved.money_fields(work)


def _cost(asked: AskedOutside) -> RequestCharge:
    cost = asked.reserved.cost
    assert cost is not None  # noqa: S101 - a call of a provider has one
    return cost


def _most(cost: RequestCharge) -> TokenCounts:
    return TokenCounts(input=cost.prompt_bound, output=cost.max_output)


def _is_known(asked: AskedOutside, end: ChargeEnd) -> bool:
    """Return whether it is known what a provider did with a request."""
    if end is ChargeEnd.ANSWER or not asked.engines:
        return True
    has_counts = end is ChargeEnd.FAILURE and asked.counts is not None
    return end is not ChargeEnd.TIME and (asked.first_token_ns is not None or has_counts)


def _is_counted(asked: AskedOutside) -> bool:
    """Return whether a provider counted all of an answer, whatever became of that."""
    is_read = asked.events.ended if asked.events is not None else not asked.fields.streams
    return is_read and asked.counts is not None


def _unseen(asked: AskedOutside, now_ns: int) -> int:
    """Return the tokens that a provider can have made at its pace since the last ones came."""
    if asked.sent_ns is None or not asked.fields.streams:
        return 0
    return (now_ns - asked.read_ns) * asked.tokens // max(asked.read_ns - asked.sent_ns, 1)
