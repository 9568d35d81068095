"""`tessera budget raise`: add to a limit until a time."""

import json
from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace

from pydantic import ValidationError

from tessera.adapters.clock import now
from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.tenant_budget import BudgetRaise
from tessera.api.text import one_line
from tessera.cli.budget.command import parse_end
from tessera.cli.cluster import Json, Reader, check_status, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.domain.budget.raises import current_raises
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.names import RAISES_ANNOTATION
from tessera.resources.manifest import wire_format

# In a refusal: a budget has at most 32 limits.
_MAX_NAMES = 400


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Write the raise."""
    at = now()
    requested = parse_raise(arguments, at)
    return await raise_limit(reader, arguments.budget, requested, at, arguments.output)


def parse_raise(arguments: SimpleNamespace, at: datetime) -> BudgetRaise:
    """Return the raise that the options describe; CommandError when they do not."""
    end = parse_end(arguments.until, at, "a raise")
    values = {"limit": arguments.limit, "by": arguments.by, "until": end}
    try:
        return BudgetRaise.model_validate({**values, "reason": arguments.reason})
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        if field == "by":
            message = f"--by {arguments.by}: give an amount above 0, such as 50"
            raise CommandError(message) from error
        raise CommandError(f"--{field}: give 1 to 256 characters") from error


async def raise_limit(
    reader: Reader, name: str, requested: BudgetRaise, at: datetime, output_format: str
) -> Output:
    """Annotate the TenantBudget, which only those may do who may change it.

    Raises of other limits stay, and those that have ended are removed.
    """
    subject, path = f"TenantBudget/{name}", TENANT_BUDGETS.path(None, name)
    body = await reader.get(path)
    if body is None:
        raise CommandError(f"{subject} not found; kubectl get tenantbudgets")
    budget = parse_own(TENANT_BUDGETS, body)
    spec = budget.spec or budget.status.accepted_spec
    if spec is None:
        raise CommandError(f"{subject}: {budget.problem}; no spec is in force that has limits")
    names = [spec.name_of(limit) for limit in spec.limits]
    if requested.limit not in names:
        raise CommandError(
            f"{subject} has no limit {requested.limit}; its limits are "
            f"{one_line(', '.join(names), _MAX_NAMES)}"
        )
    lasting = current_raises(spec, budget.raises, at)
    raises = [*(each for each in lasting if each.limit != requested.limit), requested]
    status, answer = await reader.patch(path, _patch(body["metadata"], raises))
    check_status(status, answer, f"patch {subject}", subject)
    text = (
        f"{subject}: {requested.limit} raised by {requested.by:f} {spec.currency} until "
        f"{requested.until:%Y-%m-%dT%H:%MZ}; end all raises with kubectl annotate tenantbudget "
        f"{name} {RAISES_ANNOTATION}-"
    )
    return Output.of(output_format, [text], lambda: {"budget": name, **wire_format(requested)})


def _patch(metadata: Json, raises: Sequence[BudgetRaise]) -> Json:
    """Return the patch, which the API server refuses where another one came between."""
    text = json.dumps([wire_format(each) for each in raises])
    version = metadata.get("resourceVersion")
    return {"metadata": {"annotations": {RAISES_ANNOTATION: text}, "resourceVersion": version}}
