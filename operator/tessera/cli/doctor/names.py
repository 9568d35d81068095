"""Check of the names by which tenants get services of each other."""

from collections import defaultdict

from tessera.adapters.kube import object_parsing as wire
from tessera.api.reasons import Accepted
from tessera.api.text import first_names
from tessera.cli.doctor.finding import CheckContext, Findings, ok, warning
from tessera.cli.installation import GATEWAY_VARIABLE, has_variable
from tessera.domain.budget.budgets import grants_in_force, namespace_claims
from tessera.domain.gateway.name_conflicts import find_name_conflicts
from tessera.domain.gateway.name_rights import name_rights
from tessera.domain.kinds.kinds import TENANT_BUDGETS


async def check_names(context: CheckContext) -> Findings:
    """Report names that one tenant has and services of others list, with both sides."""
    reader = context.reader
    if not await has_variable(reader, GATEWAY_VARIABLE):
        return ()
    budgets = [
        wire.parse_own(TENANT_BUDGETS, body) for body in await reader.list_objects(TENANT_BUDGETS)
    ]
    claims = namespace_claims(budgets)
    conflicts = find_name_conflicts(
        await context.services(),
        {claim.budget.name: claim.namespaces for claim in claims if claim.spec is not None},
        name_rights(grants_in_force(claims)),
    )
    taken = defaultdict[str, list[str]](list)
    for service in sorted(conflicts):
        for conflict in conflicts[service]:
            is_of_other = conflict.holder != conflict.tenant
            if conflict.reason is Accepted.NAME_CONFLICT and is_of_other:
                lister = f"{conflict.name} of InferenceService/{service}"
                taken[str(conflict.holder)].append(lister)
    if not taken:
        return ok("names", "no service lists a name that another tenant has")
    return [
        warning(
            f"names of {holder}",
            f"TenantBudget/{holder} has names that services of other tenants list, which get no "
            f"requests for them: {first_names(listers, 5)}",
            "docs/tasks/publish-models.md",
        )
        for holder, listers in sorted(taken.items())
    ]
