"""`tessera explain`: every decision about a service, its numbers, and what would change it.

`tessera explain request` says the same of where one request went.
"""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

from tessera.adapters.kube.object_parsing import parse_service
from tessera.adapters.prometheus.load import read_load
from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.explain import request
from tessera.cli.fleet import FleetInputs, open_prometheus, prometheus_url, read_fleet
from tessera.cli.output import Output
from tessera.cli.text import format_time, indent_lines, table
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Ref
from tessera.domain.reporting.decision import Decision
from tessera.domain.scaling.starts import is_slow
from tessera.ports import MetricsError
from tessera.resources.api_resources import INFERENCE_SERVICES

_MAX_SUGGESTIONS = 5


def run(arguments: SimpleNamespace) -> Output:
    """Return the decisions as text or JSON."""
    if arguments.request_id is None:
        return _service(arguments)
    if arguments.service != "request":
        raise CommandError(
            f"{arguments.service} {arguments.request_id}: pass the name of a service alone, or "
            "`request` and an id"
        )
    return request.run(arguments)


@cluster_command
async def _service(reader: Reader, arguments: SimpleNamespace) -> Output:
    url = prometheus_url(arguments)
    fleet = await read_fleet(reader, url)
    ref = Ref(reader.namespace, arguments.service)
    log = await slow_start_log(reader, fleet, ref)
    curve = await load_curve(fleet, ref, url)
    return explanation(fleet, ref, arguments.output, log, curve)


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
            start = parse_service(body).status.start
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
    body = partial(_body, ref, fleet, decisions)
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


def _body(ref: Ref, fleet: FleetInputs, decisions: Sequence[Decision]) -> Json:
    return {
        "namespace": ref.namespace,
        "service": ref.name,
        "at": fleet.at.isoformat(),
        "notes": list(_notes(fleet, decisions)),
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
