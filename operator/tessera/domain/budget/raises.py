"""Raises of limits until a time, which the operator and gateways read from one annotation."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from tessera.api.tenant_budget import BudgetRaise, Limit, TenantBudgetSpec
from tessera.domain.money import to_nanos


class AmountRaise(NamedTuple):
    """What is added to the amount of a limit, and until when."""

    nanos: int
    until: float
    """In Unix seconds."""


def raised(amount: int, raises: Iterable[AmountRaise], at: float) -> int:
    """Return the nano-units of a limit at a moment in Unix seconds, with the raises of then."""
    return amount + sum(each.nanos for each in raises if at < each.until)


def amount_raises(
    spec: TenantBudgetSpec, limit: Limit, raises: Sequence[BudgetRaise]
) -> tuple[AmountRaise, ...]:
    """Return the raises of one limit, also those that have ended."""
    name = spec.name_of(limit)
    return tuple(
        AmountRaise(to_nanos(each.by), each.until.timestamp())
        for each in raises
        if each.limit == name
    )


def limit_at(
    spec: TenantBudgetSpec, limit: Limit, raises: Sequence[BudgetRaise], at: datetime
) -> int:
    """Return the nano-units of a limit at a moment, with the raises of then."""
    return raised(to_nanos(limit.amount), amount_raises(spec, limit, raises), at.timestamp())


def current_raises(
    spec: TenantBudgetSpec, raises: Iterable[BudgetRaise], at: datetime
) -> tuple[BudgetRaise, ...]:
    """Return the raises of limits of the spec that have not ended, by the names of these."""
    names = {spec.name_of(limit) for limit in spec.limits}
    lasting = (each for each in raises if each.limit in names and at < each.until)
    return tuple(sorted(lasting, key=lambda each: (each.limit, each.until)))
