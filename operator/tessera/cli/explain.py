"""`tessera explain`: every decision about a service, its numbers, and what would change it."""

import argparse
import asyncio
import difflib
import json
from collections.abc import Iterator, Sequence

from tessera.cli.cluster import Json, reach
from tessera.cli.errors import CommandError
from tessera.cli.fleet import Fleet, fleet_of, prometheus_of
from tessera.cli.text import indented, moment, table
from tessera.cli.told import Told
from tessera.domain.explain.decision import Decision
from tessera.domain.explain.explain import explain
from tessera.domain.snapshot import Ref

_CLOSE = 5


def run(arguments: argparse.Namespace) -> Told:
    """The decisions as text or JSON."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> Told:
    async with reach(arguments) as reader:
        fleet = await fleet_of(reader, prometheus_of(arguments))
    return explained(fleet, Ref(reader.namespace, arguments.service), arguments.output)


def explained(fleet: Fleet, ref: Ref, form: str) -> Told:
    """One service of a fleet; CommandError with near names when there is none."""
    snapshot = fleet.snapshot
    must_know(ref, [service.ref for service in snapshot.services])
    decisions = explain(snapshot, fleet.planned(snapshot), ref)
    notes = list(_notes(fleet, decisions))
    if form == "json":
        return Told(json.dumps(_fields(ref, fleet, decisions, notes), indent=2) + "\n")
    lines = [f"{ref} at {moment(fleet.at)} UTC", *(f"Note: {note}" for note in notes)]
    for decision in decisions:
        lines += ["", *_lines(decision)]
    return Told("\n".join(lines) + "\n")


def must_know(ref: Ref, known: Sequence[Ref]) -> None:
    """CommandError when there is no such service, with those that may have been meant."""
    if ref in known:
        return
    elsewhere = [str(one) for one in known if one.name == ref.name]
    here = [one.name for one in known if one.namespace == ref.namespace]
    near = elsewhere or difflib.get_close_matches(ref.name, here) or sorted(here)[:_CLOSE]
    hint = f"did you mean {', '.join(near)}?" if near else "kubectl get inferenceservices -A"
    raise CommandError(f"there is no InferenceService {ref.name} in {ref.namespace}; {hint}")


def _notes(fleet: Fleet, decisions: Sequence[Decision]) -> Iterator[str]:
    """What is not known."""
    if fleet.unread:
        yield f"told by the status alone: {'; '.join(fleet.unread)}"
    elif not decisions:
        yield "the operator has not looked at it yet"
    if fleet.readings is not None and fleet.readings.problem:
        yield f"no readings: {fleet.readings.problem}"
    elif fleet.readings is None and not fleet.unread:
        yield (
            "readings (queue, activity) are not known here, so the reason for the number of "
            "replicas is that of the status; --prometheus URL reads them"
        )


def _lines(decision: Decision) -> Iterator[str]:
    since = f" since {moment(decision.since)}" if decision.since else ""
    yield f"{decision.topic.upper()}: {decision.reason}{since}"
    yield from (f"  {line}" for line in decision.message.splitlines())
    if decision.replayed:
        yield f"  planned anew it is {decision.replayed}"
    width = max((len(name) for name, _ in decision.numbers), default=0)
    for name, value in decision.numbers:
        yield f"    {name.ljust(width)}  {value}"
    if decision.alternatives:
        rows = [[one.name, one.price or "-", one.why] for one in decision.alternatives]
        yield "  all hardware:"
        yield from indented(table(("HARDWARE", "AN HOUR", "WHY"), rows), "    ")
    if decision.would_change:
        yield "  what would change it:"
        yield from (f"    - {one}" for one in decision.would_change)


def _fields(ref: Ref, fleet: Fleet, decisions: Sequence[Decision], notes: Sequence[str]) -> Json:
    return {
        "namespace": ref.namespace,
        "service": ref.name,
        "at": fleet.at.isoformat(),
        "notes": list(notes),
        "decisions": [
            {
                "topic": one.topic,
                "reason": str(one.reason),
                "message": one.message,
                "since": one.since.isoformat() if one.since else None,
                "numbers": dict(one.numbers),
                "alternatives": [
                    {"name": other.name, "price": other.price, "why": other.why}
                    for other in one.alternatives
                ],
                "wouldChange": list(one.would_change),
                "replayed": one.replayed or None,
            }
            for one in decisions
        ],
    }
