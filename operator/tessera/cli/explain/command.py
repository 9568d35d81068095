"""`tessera explain`: every decision about a service, its numbers, and what would change it.

`tessera explain route` says who answers for a route and what that saves, and `tessera explain
request` where one request went.
"""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.adapters.kube.object_parsing import parse_own
from tessera.adapters.prometheus.load import read_load
from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.explain import request
from tessera.cli.fleet import (
    FleetInputs,
    open_prometheus,
    prometheus_url,
    read_fleet,
    read_routes,
)
from tessera.cli.output import Output
from tessera.cli.text import format_time, indent_lines, table
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.explain.explain import explain
from tessera.domain.explain.route import explain_route
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, MODEL_ROUTES
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import Ref
from tessera.domain.reporting.decision import Decision
from tessera.domain.routes.savings import RouteUse
from tessera.domain.scaling.starts import is_slow
from tessera.ports import MetricsError

_MAX_SUGGESTIONS = 5


def run(arguments: SimpleNamespace) -> Output:
    """Return the decisions as text or JSON."""
    name = arguments.request_id
    if name is None:
        return _service(of_service(arguments))
    if arguments.service == "route":
        return _route(arguments)
    if arguments.service != "request":
        raise CommandError(
            f"{arguments.service} {name}: pass the name of a service alone, `route` and a name, or "
            "`request` and an id"
        )
    return request.run(arguments)


def of_service(arguments: SimpleNamespace) -> SimpleNamespace:
    """Return the arguments with namespace and name of `NAMESPACE/NAME`, as other commands print."""
    namespace, _, name = arguments.service.rpartition("/")
    given = vars(arguments)
    return SimpleNamespace(
        **{**given, "service": name, "namespace": namespace or given["namespace"]}
    )


@cluster_command
async def _service(reader: Reader, arguments: SimpleNamespace) -> Output:
    url = prometheus_url(arguments)
    fleet = await read_fleet(reader, url)
    ref = Ref(reader.namespace, arguments.service)
    log = await slow_start_log(reader, fleet, ref)
    curve = await load_curve(fleet, ref, url)
    return explanation(fleet, ref, arguments.output, log, curve)


@cluster_command
async def _route(reader: Reader, arguments: SimpleNamespace) -> Output:
    ref, url = Ref(reader.namespace, arguments.request_id), prometheus_url(arguments)
    bodies = await reader.list_objects(MODEL_ROUTES, ref.namespace)
    routes = {route.ref: route for route in (parse_own(MODEL_ROUTES, body) for body in bodies)}
    if ref not in routes:
        names = ", ".join(sorted(each.name for each in routes)[:_MAX_SUGGESTIONS])
        raise CommandError(
            f"ModelRoute/{ref.name} not found in {ref.namespace}; "
            f"{f'there is {names}' if names else 'kubectl get modelroutes -A'}"
        )
    uses, note = await read_routes(url)
    return route_explanation(routes[ref], uses.get(str(ref), ()), now(), note, arguments.output)


def route_explanation(
    route: ObservedRoute, uses: Sequence[RouteUse], at: datetime, note: str, output_format: str
) -> Output:
    """Return the decisions about a route as text or JSON; the note says what is not known."""
    decisions, notes = explain_route(route, uses), [note] if note else []
    head = {"namespace": route.ref.namespace, "route": route.ref.name, "at": at.isoformat()}

    def lines() -> Iterator[str]:
        yield f"ModelRoute/{route.ref} at {format_time(at)} UTC"
        yield from (f"Note: {each}" for each in notes)
        for decision in decisions:
            yield from ("", *_decision_lines(decision))

    return Output.of(output_format, lines(), partial(_body, head, notes, decisions))


async def load_curve(fleet: FleetInputs, ref: Ref, url: str | None) -> LoadCurve | None:
    """Return the load of the last days; None without a Prometheus that has it."""
    if url is None or fleet.readings is None or fleet.readings.problem is not None:
        return None
    if ref in (service.ref for service in fleet.snapshot.services):
        with contextlib.suppress(MetricsError):
            return await read_load(open_prometheus(url), ref, fleet.at)
    return None


async def slow_start_log(reader: Reader, fleet: FleetInputs, ref: Ref) -> str:
    """Return the log of the replica that started last, if that was slow; else nothing is read."""
    for body in fleet.objects.get(INFERENCE_SERVICES.plural, ()):
        if Ref(body["metadata"]["namespace"], body["metadata"]["name"]) == ref:
            start = parse_own(INFERENCE_SERVICES, body).status.start
            if start is not None and is_slow(start):
                return await reader.engine_log(Ref(ref.namespace, start.pod))
    return ""


def explanation(
    fleet: FleetInputs,
    ref: Ref,
    output_format: str,
    log: str = "",
    curve: LoadCurve | None = None,
) -> Output:
    """Return the decisions about one service; CommandError when it does not exist.

    `log` is that of the replica in its `status.start`, empty if it is not known; `curve` is its
    load in the last days.
    """
    snapshot = fleet.snapshot
    require_service(ref, [service.ref for service in snapshot.services])
    decisions = explain(snapshot, fleet.compute_plan(snapshot), ref, log, curve)
    head = {"namespace": ref.namespace, "service": ref.name, "at": fleet.at.isoformat()}
    body = partial(_body, head, list(_notes(fleet, decisions)), decisions)
    return Output.of(output_format, _lines(ref, fleet, decisions), body)


def _lines(ref: Ref, fleet: FleetInputs, decisions: Sequence[Decision]) -> Iterator[str]:
    yield f"{ref} at {format_time(fleet.at)} UTC"
    yield from (f"Note: {note}" for note in _notes(fleet, decisions))
    for decision in decisions:
        yield from ("", *_decision_lines(decision))


def require_service(ref: Ref, known: Sequence[Ref]) -> None:
    """Raise CommandError with similar names when there is no such service."""
    if ref in known:
        return
    same_name = [str(known_ref) for known_ref in known if known_ref.name == ref.name]
    same_namespace = [known_ref.name for known_ref in known if known_ref.namespace == ref.namespace]
    suggestions = (
        same_name
        or difflib.get_close_matches(ref.name, same_namespace)
        or sorted(same_namespace)[:_MAX_SUGGESTIONS]
    )
    hint = f"did you mean {', '.join(suggestions)}?" if suggestions else "kubectl get tsvc -A"
    raise CommandError(f"InferenceService/{ref.name} not found in {ref.namespace}; {hint}")


def _notes(fleet: FleetInputs, decisions: Sequence[Decision]) -> Iterator[str]:
    """Yield notes on missing inputs."""
    if fleet.read_errors:
        yield f"from the status alone, since reads failed: {'; '.join(fleet.read_errors)}"
    elif not decisions:
        yield "the operator has not reconciled it yet"
    if fleet.readings is not None and fleet.readings.problem:
        yield f"no metrics: {fleet.readings.problem}"
    elif fleet.readings is None and not fleet.read_errors:
        yield (
            "no metrics of queue and activity, so the reason for the number of replicas is that of "
            "the status; pass --prometheus URL to read them"
        )


def _decision_lines(decision: Decision) -> Iterator[str]:
    since = f" since {format_time(decision.since)}" if decision.since else ""
    yield f"{decision.topic.upper()}: {decision.reason}{since}"
    yield from (f"  {line}" for line in decision.message.splitlines())
    if decision.replayed:
        yield f"  a new plan says {decision.replayed}"
    yield from indent_lines(table((), decision.numbers), "    ")
    if decision.alternatives:
        rows = [
            [alternative.name, alternative.price or "-", alternative.message]
            for alternative in decision.alternatives
        ]
        yield "  all hardware:"
        yield from indent_lines(table(("HARDWARE", "PER HOUR", "REASON"), rows), "    ")
    if decision.would_change:
        yield "  what would change it:"
        yield from (f"    - {change}" for change in decision.would_change)


def _body(head: Json, notes: Sequence[str], decisions: Sequence[Decision]) -> Json:
    return {
        **head,
        "notes": notes,
        "decisions": [
            {
                "topic": decision.topic,
                "reason": str(decision.reason),
                "message": decision.message,
                "since": decision.since.isoformat() if decision.since else None,
                "numbers": dict(decision.numbers),
                "alternatives": [asdict(alternative) for alternative in decision.alternatives],
                "wouldChange": list(decision.would_change),
                "recomputed": decision.replayed or None,
            }
            for decision in decisions
        ],
    }
