"""What a gateway tells the operator of the accounts that it asked."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tessera.domain.charge.exchange import AccountKey, ChargeAnswer
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope, is_outside
from tessera.domain.observed.charges import (
    AccountCharge,
    LimitCharges,
    LimitId,
    merged_charges,
    nearest,
)

_NO_NEEDS: Mapping[AccountKey, int] = {}


def reported_charges(
    accounts: Iterable[tuple[ChargeScope, ChargeAnswer]],
    needs: Mapping[AccountKey, int] = _NO_NEEDS,
) -> Mapping[LimitId, LimitCharges]:
    """Return the last window of each limit of budgets, with the accounts nearest to their end.

    `needs` has the least that single requests need.
    """
    by_window: dict[tuple[LimitId, int], list[AccountCharge]] = defaultdict(list)
    for scope, answer in accounts:
        limit = scope.limit
        if not scope.key.startswith(f"{limit.budget}/{limit.name}"):
            # The budget in the record of a key.
            continue
        # An account's limit has corrections, by which less of it counts as spent. None are of what
        # providers bill, and what is lent for that may have grown since the answer.
        is_corrected = not is_outside(scope.key)
        corrected = answer.limit - limit.amount_at(answer.at) if is_corrected else 0
        settled = max(0, answer.settled - corrected)
        need = needs.get(answer.account, 0)
        is_asked = limit.is_lowered or answer.generation > limit.generation
        generation = answer.generation if is_asked and is_outside(scope.key) else 0
        member = _member(limit, scope.key)
        account = AccountCharge(settled, answer.lent, member, need, generation)
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
