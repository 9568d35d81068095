"""`tessera snapshot plan`: what this version decides from a snapshot file."""

import argparse
import json
from collections.abc import Iterator

from tessera.cli.cluster import Json
from tessera.cli.errors import CommandError
from tessera.cli.explain import explanation
from tessera.cli.fleet import Fleet
from tessera.cli.snapshot_file import read, tessera_version
from tessera.cli.text import moment, table
from tessera.cli.told import Told
from tessera.domain.plan import Plan, plan
from tessera.domain.snapshot import Ref, Snapshot
from tessera.domain.status import service_status


def run(arguments: argparse.Namespace) -> Told:
    """All decisions, or those about one service."""
    fleet, version = read(arguments.file)
    if arguments.service:
        return explanation(fleet, _ref(arguments.service), arguments.output)
    snapshot = fleet.snapshot
    decided = plan(snapshot)
    if arguments.output == "json":
        return Told(json.dumps(_fields(fleet, version, snapshot, decided), indent=2) + "\n")
    return Told("\n".join(_lines(fleet, version, snapshot, decided)) + "\n")


def _ref(text: str) -> Ref:
    namespace, slash, name = text.partition("/")
    if not slash:
        raise CommandError(f"--service {text}: write NAMESPACE/NAME")
    return Ref(namespace, name)


def _lines(fleet: Fleet, version: str, snapshot: Snapshot, decided: Plan) -> Iterator[str]:
    yield f"Planned by tessera {tessera_version()} as of {moment(fleet.at)} UTC."
    yield from _notes(fleet, version)
    for name, rows in _parts(snapshot, decided).items():
        if rows:
            yield ""
            yield from table(
                (name.upper(), *(column.upper() for column in rows[0] if column != "name")),
                [[str("-" if value is None else value) for value in row.values()] for row in rows],
            )


def _notes(fleet: Fleet, version: str) -> Iterator[str]:
    if version != tessera_version():
        yield f"It was saved by tessera {version}, which may have decided otherwise."
    if fleet.readings is None:
        yield "Readings were not saved, so no number of replicas changes."
    for why in fleet.unread:
        yield f"Not everything was saved, so decisions may differ: {why}"


def _fields(fleet: Fleet, version: str, snapshot: Snapshot, decided: Plan) -> Json:
    return {
        "plannedBy": tessera_version(),
        "savedBy": version,
        "at": fleet.at.isoformat(),
        "notes": list(_notes(fleet, version)),
        **_parts(snapshot, decided),
    }


def _parts(snapshot: Snapshot, decided: Plan) -> dict[str, list[Json]]:
    """Every decision in a row: the same words as in status."""
    services = []
    for ref, one in decided.service_plans.items():
        status = service_status(
            snapshot, one, decided.budgets_by_namespace.get(ref.namespace), None
        )
        words = {condition.type.lower(): condition.reason for condition in status.conditions}
        services.append(
            {
                "name": str(ref),
                **words,
                "hardware": one.choice.variant if one.choice else None,
                "replicas": one.scale.replicas,
                "hourly": str(one.choice.hourly.times(one.scale.replicas)) if one.choice else None,
                "scaling": str(one.scale.reason),
            }
        )
    return {
        "services": services,
        "batches": [
            {"name": str(ref), "state": str(one.state), "running": str(one.running.reason)}
            for ref, one in decided.batches.items()
        ],
        "pools": [
            {
                "name": view.pool.name,
                "accepted": str(view.accepted.reason),
                "discovered": str(view.discovered.reason),
                "message": view.discovered.message,
            }
            for view in decided.pools
        ],
        "budgets": [
            {
                "name": view.budget.name,
                "accepted": str(view.accepted.reason),
                "funded": str(view.funded.reason),
                "message": view.funded.message,
            }
            for view in decided.budgets
        ],
    }
