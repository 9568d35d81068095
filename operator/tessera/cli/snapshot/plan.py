"""`tessera snapshot plan`: the plan that this version computes from a snapshot file."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TypeAlias

from tessera import __version__
from tessera.cli.cluster import Json
from tessera.cli.errors import CommandError
from tessera.cli.explain.command import explanation
from tessera.cli.fleet import FleetInputs
from tessera.cli.output import Output
from tessera.cli.snapshot.file import read
from tessera.cli.text import column_head, format_time, table
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tessera.domain.status.variants import instances_text

_Decisions: TypeAlias = Mapping[str, Sequence[Json]]


def run(arguments: SimpleNamespace) -> Output:
    """Print all decisions, or those about one service."""
    fleet, version = read(arguments.file)
    if arguments.service:
        return explanation(fleet, _parse_ref(arguments.service), arguments.output)
    snapshot = fleet.snapshot
    rows = _decision_rows(snapshot, fleet.plan(snapshot))
    body = partial(_plan_json, fleet, version, rows)
    return Output.of(arguments.output, _plan_lines(fleet, version, rows), body)


def _parse_ref(text: str) -> Ref:
    namespace, slash, name = text.partition("/")
    if not slash:
        raise CommandError(f"--service {text}: write NAMESPACE/NAME")
    return Ref(namespace, name)


def _plan_lines(fleet: FleetInputs, version: str, decisions: _Decisions) -> Iterator[str]:
    yield f"Computed by tessera {__version__} as of {format_time(fleet.at)} UTC."
    yield from _notes(fleet, version)
    for name, rows in decisions.items():
        if rows:
            yield ""
            yield from table(
                (name.upper(), *(column_head(key) for key in rows[0] if key != "name")),
                [[str("-" if value is None else value) for value in row.values()] for row in rows],
            )


def _notes(fleet: FleetInputs, version: str) -> Iterator[str]:
    if version != __version__:
        yield f"Saved by tessera {version}, whose decisions may differ."
    if fleet.readings is None:
        yield "No readings saved: no replica count changes."
    for read_error in fleet.read_errors:
        yield f"Incomplete, so decisions may differ: {read_error}"


def _plan_json(fleet: FleetInputs, version: str, decisions: _Decisions) -> Json:
    return {
        "plannedBy": __version__,
        "savedBy": version,
        "at": fleet.at.isoformat(),
        "notes": list(_notes(fleet, version)),
        **decisions,
    }


def _variant_names(service_plan: ServicePlan) -> str | None:
    """Return the variant; several with their replicas."""
    choice = service_plan.choice
    return instances_text(service_plan) or (choice.variant if choice is not None else None)


def _decision_rows(snapshot: Snapshot, fleet_plan: Plan) -> _Decisions:
    """Return a row for every decision, in the words of the status."""
    services = []
    for ref, service_plan in fleet_plan.service_plans.items():
        budget = fleet_plan.budgets_by_namespace.get(ref.namespace)
        status = service_status(snapshot, service_plan, budget, None)
        reasons = [(condition.type, condition.reason) for condition in status.conditions]
        total = service_plan.desired_hourly
        services.append(
            {
                "name": str(ref),
                **{kind[0].lower() + kind[1:]: reason for kind, reason in reasons},
                "variant": _variant_names(service_plan),
                "replicas": service_plan.desired_pods,
                "perHour": str(total) if total is not None else None,
                "scaling": str(service_plan.scale.reason),
            }
        )
    return {
        "services": services,
        "batches": [
            {
                "name": str(ref),
                "state": str(batch_plan.state),
                "running": str(batch_plan.running.reason),
            }
            for ref, batch_plan in fleet_plan.batches.items()
        ],
        "pools": [
            {
                "name": view.pool.name,
                "accepted": str(view.accepted.reason),
                "discovered": str(view.discovered.reason),
                "message": view.discovered.message,
            }
            for view in fleet_plan.pools
        ],
        "budgets": [
            {
                "name": view.budget.name,
                "accepted": str(view.accepted.reason),
                "withinBudget": str(view.within_budget.reason),
                "message": view.within_budget.message,
            }
            for view in fleet_plan.budgets
        ],
    }
