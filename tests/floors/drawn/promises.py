"""Compares what conditions promise with what happens: an act follows, or the words change."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.api.reasons import Accepted, PlacementReason, Progressing, Ready, StatusReason
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.waits import Wait, kind_of
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tessera.resources.manifest import ObjectKey
from tests.floors.drawn.fleet import DrawnFleet
from tests.floors.drawn.verdict import waits_for_device
from tests.floors.fleet import NAMESPACE

_MINUTE = timedelta(minutes=1)
# What a message promises, and how long nothing may change about the service until then.
_PROMISES: tuple[tuple[re.Pattern[str], timedelta], ...] = (
    (re.compile(r"an old (replica|one) (stops|leaves) first"), 15 * _MINUTE),
    (re.compile(r"\bsets (it|them|.{0,40}) ?back to\b"), 3 * _MINUTE),
    (re.compile(r"\bits Job \S+ starts\b"), 5 * _MINUTE),
    (re.compile(r"\bis tried\b|\bis next\b|\bis asked\b"), 30 * _MINUTE),
)
# Reasons that say of a service that it moves, and how long nothing may change meanwhile.
_MOVING = {
    "RollingOut": 25 * _MINUTE,
    "Starting": 25 * _MINUTE,
    "Draining": 15 * _MINUTE,
    "LayoutPending": 30 * _MINUTE,
    "ProbePending": 5 * _MINUTE,
}
_UNTIL = re.compile(r"\buntil (?:(\d{4}-\d\d-\d\d)T)?(\d\d:\d\d(?::\d\d)?)(?:Z|\b)")
# How late what follows a moment may be: a cycle, and what its write needs.
_LATE = timedelta(minutes=2)
_NUMBERS = re.compile(r"\d+")
# The conditions with waits; the others say what was measured.
_REASONS: Mapping[str, type[StatusReason]] = {
    "Accepted": Accepted,
    "Placed": PlacementReason,
    "Progressing": Progressing,
    "Ready": Ready,
}


@dataclass(slots=True)
class _Said:
    text: str
    since: datetime
    changes: int
    """How much had changed about the service then."""
    reported: bool = False


@dataclass(slots=True)
class Promises:
    """What each condition of each service says, and since when nothing followed."""

    fleet: DrawnFleet
    untrue: list[str] = field(default_factory=list)
    _said: dict[tuple[str, str], _Said] = field(default_factory=dict)
    _changes: dict[str, int] = field(default_factory=dict)
    _seen: int = 0

    def look(self) -> None:
        """Find the promises whose time has passed."""
        self._count_changes()
        if self.fleet.kube.refused_statuses:
            # No condition can change meanwhile.
            self._said.clear()
            return
        present = set()
        for service in self.fleet.services():
            for condition in self.fleet.conditions(service):
                name = service, condition["type"]
                if condition["type"] in _REASONS:
                    present.add(name)
                    self._compare(name, condition["reason"], condition["message"])
        for name in self._said.keys() - present:
            del self._said[name]

    def _compare(self, name: tuple[str, str], reason: str, message: str) -> None:
        now, changes = self.fleet.kube.steady, self._changes.get(name[0], 0)
        meta = self.fleet.kube.objects[_service(name[0])]["metadata"]
        text = f"{meta['generation']} {reason}: {_NUMBERS.sub('#', message)}"
        said = self._said.get(name)
        if said is None or (said.text, said.changes) != (text, changes):
            self._said[name] = _Said(text, now, changes)
            said = self._said[name]
        if said.reported:
            return
        over = self._overdue(said, *name, reason, message)
        if over:
            said.reported = True
            self.untrue.append(
                f"{self.fleet.kube.at:%H:%M:%S} {name[0]} {reason}: {message} ({over})"
            )

    def _overdue(self, said: _Said, service: str, condition: str, reason: str, message: str) -> str:
        """Return what did not follow in its time; nothing while all may be true."""
        waited = self.fleet.kube.steady - said.since
        for moment in _moments(message, self.fleet.kube.at):
            if self.fleet.kube.at > moment + _LATE and waited > _LATE:
                return f"{moment:%H:%M:%S} is over"
        limits = [limit for pattern, limit in _PROMISES if pattern.search(message)]
        if reason in _MOVING and not waits_for_device(self.fleet, service, reason):
            limits.append(_MOVING[reason])
        kind = kind_of(_REASONS[condition](reason))
        wait = Wait(kind=kind, subject=service, since=said.since) if kind is not None else None
        is_overdue = wait is not None and wait.is_overdue(self.fleet.kube.steady)
        if is_overdue or (limits and waited > min(limits)):
            return f"nothing changed for {waited.total_seconds() / 60:.0f} min"
        return ""

    def _count_changes(self) -> None:
        """Count what changes about the pods and Deployments of each service."""
        history = self.fleet.kube.history
        for _, key, _ in history[self._seen :]:
            service = _service_of(self.fleet, key)
            if service:
                self._changes[service] = self._changes.get(service, 0) + 1
        self._seen = len(history)


def _service(name: str) -> ObjectKey:
    return ObjectKey(INFERENCE_SERVICES.plural, NAMESPACE, name)


def _service_of(fleet: DrawnFleet, key: ObjectKey) -> str:
    """Return the service whose replica or Deployment changed."""
    if key.plural not in (PODS.plural, DEPLOYMENTS.plural):
        return ""
    services = (each for each in fleet.services() if key.name.startswith(f"{each}-"))
    return next(services, "")


def _moments(message: str, now: datetime) -> Iterator[datetime]:
    """Yield the moments until which a message says that something lasts."""
    for day, clock in _UNTIL.findall(message):
        at = datetime.fromisoformat(f"{day or f'{now:%Y-%m-%d}'}T{clock}+00:00")
        # A time of day without a date is the one nearest to now.
        if not day and at - now > timedelta(hours=12):
            at -= timedelta(days=1)
        yield at
