"""Names in `spec.publishing` of budgets: one has a name for a tenant, and the other is told so."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.domain.budget.budgets import NamespaceClaim, namespace_claims
from tessera.domain.observed.snapshot import Budget
from tests.builders import NOW, a_budget

Grant = Mapping[str, Any]


def a_tenant(name: str, *grants: Grant, age_days: int = 0, **fields: Any) -> Budget:
    publishing = [{"names": ["llama"], **grant} for grant in grants]
    budget = a_budget(name, publishing=publishing, **fields)
    return replace(budget, created=NOW - timedelta(days=age_days))


def claims(*budgets: Budget) -> dict[str, NamespaceClaim]:
    """Return what each budget has, whatever the order of the list."""
    orders = [
        {claim.budget.name: claim for claim in namespace_claims(order)}
        for order in permutations(budgets)
    ]
    assert all(order == orders[0] for order in orders)
    return orders[0]


def reasons(*budgets: Budget) -> dict[str, str]:
    return {name: str(claim.accepted.reason) for name, claim in claims(*budgets).items()}


TO_C, PUBLIC, OWN = {"tenants": ["c"]}, {"public": True}, dict[str, Any]()
PAIRS: dict[str, tuple[Grant, Grant, bool]] = {
    "the same tenant": (TO_C, {"tenants": ["d", "c"]}, True),
    "other tenants": (TO_C, {"tenants": ["d"]}, False),
    "all and all": (PUBLIC, PUBLIC, True),
    "all and one": (PUBLIC, TO_C, True),
    "one and all": (TO_C, PUBLIC, True),
    "all, and one for itself": (PUBLIC, OWN, False),
    "each for itself": (OWN, OWN, False),
    "for the other one": (TO_C, {"tenants": ["a"]}, True),
    "for the one that has it for itself": (OWN, {"tenants": ["a"]}, True),
    "other names": (PUBLIC, {"names": ["chat"], **PUBLIC}, False),
}


@pytest.mark.parametrize(("older", "newer", "clashes"), PAIRS.values(), ids=PAIRS)
def test_of_two_budgets_with_a_name_for_one_tenant_the_older_one_has_it(
    older: Grant, newer: Grant, clashes: bool
) -> None:
    both = reasons(a_tenant("a", older, age_days=1), a_tenant("b", newer))
    expected = ("NameContested", "NameConflict") if clashes else ("Valid", "Valid")
    assert both == {"a": expected[0], "b": expected[1]}


def test_both_budgets_name_the_other_one_and_the_field() -> None:
    both = claims(
        a_tenant("a", PUBLIC, age_days=1), a_tenant("b", {"names": ["x", "llama"]} | TO_C)
    )
    assert both["b"].accepted.message == (
        "spec.publishing[0].names[1]: llama belongs to TenantBudget/a already; remove it from one "
        "of the two, since no tenant gets services of two others by one name"
    )
    assert both["a"].accepted.message == (
        "spec.publishing: llama stays here, and is also in spec.publishing[0].names[1] of "
        "TenantBudget/b, which is not accepted for that; remove it from one of the two"
    )


def accepted(budget: Budget) -> TenantBudgetStatus:
    return TenantBudgetStatus(accepted_spec=budget.spec)


def test_a_name_stays_with_the_budget_that_had_it_whatever_older_ones_want_later() -> None:
    holder = a_tenant("b", PUBLIC)
    holder = replace(holder, status=accepted(holder))
    grasping = a_tenant("a", PUBLIC, age_days=9, status=accepted(a_tenant("a", OWN)))
    both = claims(holder, grasping)
    assert reasons(holder, grasping) == {"a": "NameConflict", "b": "NameContested"}
    assert both["a"].spec == a_tenant("a", OWN).spec, "its last accepted spec goes on"
    assert both["a"].namespaces == ("a",)


@pytest.mark.parametrize("age_days", [0, 9])
def test_a_name_moves_once_its_budget_gives_it_up(age_days: int) -> None:
    """In the cycle in which it does, or in the one after that: its status says when."""
    giving = a_tenant("a", age_days=1, status=accepted(a_tenant("a", PUBLIC)))
    taking = a_tenant("b", PUBLIC, age_days=age_days)
    first = reasons(giving, taking)
    assert first == {"a": "Valid", "b": "NameConflict" if age_days else "Valid"}
    assert reasons(replace(giving, status=accepted(giving)), taking) == {"a": "Valid", "b": "Valid"}
