"""The price of one request, and the limits of basis Charge that hold for it."""

from collections.abc import Iterable

from tessera.api.key_record import KeyBudget
from tessera.api.ref import Ref
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope, MemberKind
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel, TenantLimits
from tessera.domain.money import to_nanos

# No limit of a budget has a name with a space.
KEY_BUDGET = "key budget"
# Of what gates ask, whatever the class of the service.
EVALUATION_CLASS = "Evaluation"


def charged_name(model: OfferedModel, name: str) -> str:
    """Return under which name a request for a model by one of its names is charged.

    It is that of the adapter, or the served name whichever alias was sent; in lower case.
    """
    return (name if name in model.adapters else model.names[0]).lower()


def price_for(
    directory: Directory, tenant: str, model: OfferedModel, name: str, at: float
) -> RequestPrice | None:
    """Return what a tenant pays for a model by one of its names at a time in Unix seconds.

    None where no PriceList has a price in the currency of its budget.
    """
    payer = directory.tenants.get(tenant)
    if payer is None:
        return None
    return directory.prices.find(payer.currency, tenant, _charged_names(model, name), at)


def next_price(
    directory: Directory, tenant: str, model: OfferedModel, name: str, at: float
) -> tuple[RequestPrice, float] | None:
    """Return the price that `price_for` has next, and from when on in Unix seconds.

    None where no PriceList has one.
    """
    payer = directory.tenants.get(tenant)
    if payer is None:
        return None
    return directory.prices.next_price(payer.currency, tenant, _charged_names(model, name), at)


def _charged_names(model: OfferedModel, name: str) -> Iterable[str]:
    return dict.fromkeys((charged_name(model, name), model.names[0].lower()))


def charge_scopes(
    directory: Directory, identity: Identity, model: OfferedModel | None, name: str
) -> tuple[ChargeScope, ...]:
    """Return all limits of basis Charge that hold for a request for a model by one of its names.

    Without a model they are those of the sender alone.

    A named member and each member hold together. The budget of the key comes last.
    """
    tenant = directory.tenants.get(identity.tenant)
    if tenant is None or (not tenant.charge_limits and identity.budget is None):
        return ()
    members = {
        MemberKind.TEAM: identity.team,
        MemberKind.KEY: identity.key,
        MemberKind.USER: identity.user if identity.key is None else None,
        MemberKind.SERVICE: None if model is None else str(model.service.base),
        MemberKind.MODEL: None if model is None else charged_name(model, name),
    }
    scopes = []
    for limit in tenant.charge_limits:
        key = f"{limit.budget}/{limit.name}"
        if limit.kind is None:
            scopes.append(ChargeScope(key=key, limit=limit))
        elif (member := members[limit.kind]) is not None:
            names: tuple[str, ...] = (member,)
            if limit.kind is MemberKind.MODEL and model is not None and name not in model.adapters:
                names = tuple(each.lower() for each in model.names)
            if limit.member is None:
                key = f"{key}/{limit.kind}/{member}"
            if limit.member in (None, member):
                scopes.append(ChargeScope(key=key, limit=limit, members=names))
    if identity.budget is not None and identity.key is not None:
        scopes.append(_key_scope(tenant, identity.key, identity.budget))
    return tuple(scopes)


def outside_scopes(tenant: TenantLimits) -> tuple[ChargeScope, ...]:
    """Return the limits of basis Cost that hold for a call of a provider."""
    return tuple(
        ChargeScope(key=f"{limit.budget}/{limit.name}", limit=limit) for limit in tenant.outside
    )


def batch_model(namespace: str, batch: str, model: str, tenant: str) -> OfferedModel:
    """Return the engine of a batch as limits and prices know a model."""
    service = Ref(namespace, f"batch/{batch}")
    return OfferedModel(service=service, uid="", names=(model,), tenant=tenant)


def _key_scope(tenant: TenantLimits, key: str, budget: KeyBudget) -> ChargeScope:
    limit = ChargeLimit(
        budget=tenant.name,
        generation=tenant.generation,
        name=KEY_BUDGET,
        window=budget.window,
        amount=to_nanos(budget.amount),
        currency=tenant.currency,
        time_zone=tenant.time_zone,
        kind=MemberKind.KEY,
        member=key,
    )
    # Names of limits are in lower case, so this is the key of no other account.
    return ChargeScope(key=f"{tenant.name}/{MemberKind.KEY}/{key}", limit=limit, members=(key,))
