"""`tessera budget override`: open a budget whose spend is unknown or not recorded."""

import json
from datetime import datetime, timedelta
from http import HTTPStatus
from types import SimpleNamespace

from pydantic import ValidationError

from tessera.adapters.clock import now
from tessera.api.tenant_budget import BudgetOverride
from tessera.cli.cluster import Reader, check_status, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.cli.text import parse_time
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.names import OVERRIDE_ANNOTATION
from tessera.resources.manifest import wire_format

# No window is longer.
_MAX_DURATION = timedelta(days=31)


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Write the override."""
    requested = parse_override(arguments.until, arguments.reason, now())
    return await override(reader, arguments.budget, requested, arguments.output)


def parse_override(until: str, reason: str, at: datetime) -> BudgetOverride:
    """Return the override that the options describe; CommandError when they do not."""
    end = parse_end(until, at, "an override")
    try:
        return BudgetOverride(until=end, reason=reason)
    except ValidationError as error:
        raise CommandError("--reason: give 1 to 256 characters") from error


def parse_end(until: str, at: datetime, subject: str) -> datetime:
    """Return the end of an override or a raise; CommandError for one that is not near."""
    end = parse_time("--until", until, "not a time, use a form such as 2026-11-30T18:00:00Z")
    if not at < end <= at + _MAX_DURATION:
        raise CommandError(
            f"--until {until}: not within the next {_MAX_DURATION.days} days; {subject} always ends"
        )
    return end


async def override(
    reader: Reader, name: str, requested: BudgetOverride, output_format: str
) -> Output:
    """Annotate the TenantBudget, which only those may do who may change it."""
    body = {"metadata": {"annotations": {OVERRIDE_ANNOTATION: json.dumps(wire_format(requested))}}}
    status, answer = await reader.patch(TENANT_BUDGETS.path(None, name), body)
    subject = f"TenantBudget/{name}"
    if status == HTTPStatus.NOT_FOUND:
        raise CommandError(f"{subject} not found; kubectl get tenantbudgets")
    check_status(status, answer, f"patch {subject}", subject)
    text = (
        f"{subject}: override until {requested.until:%Y-%m-%dT%H:%MZ}, its spend counts "
        f"on; end it with kubectl annotate tenantbudget {name} {OVERRIDE_ANNOTATION}-"
    )
    return Output.of(output_format, [text], lambda: {"budget": name, **wire_format(requested)})
