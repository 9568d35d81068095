"""Limits of what requests may be charged, and the account that each has for one request."""

from dataclasses import dataclass
from enum import StrEnum

from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.raises import AmountRaise, raised
from tessera.domain.charge.throttle import ThrottleTerms
from tessera.domain.observed.charges import OUTSIDE

# The key in `UsageRecord.charges` of what is of another month than that in which it began.
OTHER_MONTH = ""


class MemberKind(StrEnum):
    """What a limit of a tenant holds for."""

    TEAM = "Team"
    KEY = "Key"
    USER = "User"
    """Subject of a token; a request with a key has none."""
    SERVICE = "Service"
    MODEL = "Model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeLimit:
    """What a tenant, or a part of it, may be charged in a window: a limit of basis Charge, or what
    the operator lends of a limit of basis Cost for calls of providers.
    """

    budget: str
    """Name of the TenantBudget."""
    generation: int
    """Of the budget, higher for one that was created again: accounts lend nothing for an older one
    than they have seen."""
    name: str
    """Unique in the budget."""
    window: WindowName
    amount: int
    """Nano-units of the currency, without raises."""
    currency: str
    time_zone: str
    """IANA name, in which windows begin."""
    kind: MemberKind | None = None
    """None: it holds for all requests of the tenant together."""
    member: str | None = None
    """The one for which it holds; None: each has an account of its own."""
    raises: tuple[AmountRaise, ...] = ()
    throttle: ThrottleTerms | None = None
    """None: it may be spent at once."""
    is_lowered: bool = False
    """The operator waits until the account has this amount, which is lower than the one before."""

    def amount_at(self, at: float) -> int:
        """Return the nano-units at a moment in Unix seconds, with the raises of then."""
        return raised(self.amount, self.raises, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeScope:
    """A limit as it holds for one request."""

    key: str
    """Of its account in the whole fleet: `team-a/charge-month` or `team-a/each-key/Key/ci`."""
    limit: ChargeLimit
    members: tuple[str, ...] = ()
    """What records of its member have in the field of the limit's kind: of a model each alias, in
    lower case."""


def is_outside(key: str) -> bool:
    """Return whether an account counts what providers bill, by the key of its scope."""
    return key.partition("/")[2].startswith(OUTSIDE)
