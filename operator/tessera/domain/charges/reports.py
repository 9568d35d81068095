"""What a gateway tells the operator of the accounts that it asked."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tessera.domain.charges.exchange import ChargeAnswer
from tessera.domain.charges.scopes import ChargeLimit, ChargeScope
from tessera.domain.observed.charges import (
    AccountCharge,
    LimitCharges,
    LimitId,
    merged_charges,
    nearest,
)


def reported_charges(
    accounts: Iterable[tuple[ChargeScope, ChargeAnswer]],
) -> Mapping[LimitId, LimitCharges]:
    """Return the last window of each limit of budgets, with the accounts nearest to their end."""
    by_window: dict[tuple[LimitId, int], list[AccountCharge]] = defaultdict(list)
    for scope, answer in accounts:
        limit = scope.limit
        if not scope.key.startswith(f"{limit.budget}/{limit.name}"):
            # The budget in the record of a key.
            continue
        # An account's limit has corrections, by which less of it counts as spent.
        corrected = answer.limit - limit.amount_at(answer.at)
        settled = max(0, answer.settled - corrected)
        account = AccountCharge(settled, answer.lent, _member(limit, scope.key))
        by_window[LimitId(limit.budget, limit.name), answer.account.start].append(account)
    return {
        limit: LimitCharges(
            start=start,
            members=len(each) if each[0].member else 0,
            accounts=nearest(each),
        )
        for (limit, start), each in sorted(by_window.items())
    }


def merged_limits(
    first: Mapping[LimitId, LimitCharges], second: Mapping[LimitId, LimitCharges]
) -> Mapping[LimitId, LimitCharges]:
    """Return what both tell."""
    both = first.keys() & second.keys()
    merged = {limit: merged_charges(first[limit], second[limit]) for limit in both}
    return {**first, **second, **merged}


def _member(limit: ChargeLimit, key: str) -> str:
    """Return whose account it is, where each member has one."""
    if limit.kind is None or limit.member is not None:
        return ""
    return key.removeprefix(f"{limit.budget}/{limit.name}/{limit.kind}/")
