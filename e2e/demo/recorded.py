"""What a run of the demo has measured, as its report shows it and a JSON file has it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep:
    """One step of the run; seconds are since its begin."""

    title: str
    expected: str
    """What one was about to see, in one sentence."""
    seen: str
    """What was seen, in one sentence."""
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Seconds since the begin of the run, and values; there are gaps where nothing was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """The charts of a run, each with its lines on the time of the run."""

    replicas: tuple[Curve, ...]
    """Ready replicas, by service."""
    queue: tuple[Curve, ...]
    """Requests that wait at the gateway and at engines, by service."""
    activity: tuple[Curve, ...]
    """DCGM_FI_PROF_GR_ENGINE_ACTIVE, the mean of the devices of a service, from 0 to 1."""
    arrivals: tuple[Curve, ...]
    """Requests that reach the gateway in a second, by service; those asked directly have none."""
    dollars_per_hour: tuple[Curve, ...]
    """USD an hour of running replicas and of desired ones, by service."""
    dollars: tuple[Curve, ...]
    """USD since the begin of the run, by tenant; `(unused)` is what no tenant holds."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A mark on the time axis."""

    at_s: float
    text: str
    """At most five words, as `spot node lost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """What a service or batch of a tenant cost in the run."""

    tenant: str
    """A TenantBudget; empty for what no tenant holds."""
    service: str
    """As `team-a/chat` or `team-batch/batch/night`; of no tenant as `(unused in POOL)`."""
    usd: float
    share: float
    """Of the whole bill, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class TenantBill:
    """The lines of one tenant, or of what no tenant holds."""

    tenant: str
    lines: tuple[BillLine, ...]

    @property
    def usd(self) -> float:
        """Return the sum of the lines."""
        return sum(line.usd for line in self.lines)

    @property
    def share(self) -> float:
        """Return the part of the whole bill, from 0 to 1."""
        return sum(line.share for line in self.lines)


def by_tenant(lines: Iterable[BillLine]) -> list[TenantBill]:
    """Return the bills of the tenants, the most expensive first, each with its lines in order."""
    grouped: dict[str, list[BillLine]] = defaultdict(list)
    for line in lines:
        grouped[line.tenant].append(line)
    bills = [TenantBill(tenant, tuple(grouped[tenant])) for tenant in sorted(grouped)]
    return sorted(bills, key=lambda bill: -bill.usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A whole run."""

    version: str
    """Of Tessera."""
    started: str
    """UTC, as 2026-11-28T12:00:00Z."""
    seconds: float
    cpu_seconds: float | None
    """Of all processes of the run; None while its world goes on."""
    steps: tuple[RecordedStep, ...]
    curves: Curves
    moments: tuple[Moment, ...]
    mosaic_before: str
    """An SVG document, by `tessera mosaic --svg`, before the GPUs were repartitioned."""
    mosaic_after: str
    bill: tuple[BillLine, ...]
    """The most expensive first; the lines add up to the whole."""


_ADAPTER = TypeAdapter(RecordedRun)


def to_json(run: RecordedRun) -> str:
    """Return the run as JSON."""
    return _ADAPTER.dump_json(run).decode()


def from_json(text: str) -> RecordedRun:
    """Return the run that JSON describes; ValueError for any other text."""
    return _ADAPTER.validate_json(text)
