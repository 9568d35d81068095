"""Ejection of failing replicas and slow start of new ones."""

from dataclasses import dataclass, replace

# Failures in a row after which a replica is ejected, and for how long: 5 s the first time, then
# twice as long after each failure that follows, until a request succeeds.
EJECTION_FAILURES = 3
FIRST_EJECTION_SECONDS = 5.0
MAX_EJECTION_SECONDS = 300.0

SLOW_START_SECONDS = 5.0
MIN_START_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHealth:
    """How the last requests of a replica ended; the default is that of a new replica."""

    failures: int = 0
    """Failed requests since the last success or ejection-free time."""
    ejected_until: float = 0.0
    suspect: str | None = None
    """Tenant of the last failure that its request may have caused."""


HEALTHY = ReplicaHealth()


def after_failure(
    health: ReplicaHealth, now: float, *, suspect: str | None = None
) -> ReplicaHealth:
    """Count a failure of the replica, not of the request: no connection, 5xx, a broken answer.

    Requests that fail during an ejection were sent before it, so they do not prolong it. A failure
    that the request of a tenant may have caused, the suspect, counts only if the last one of that
    kind was another tenant's: no tenant ejects replicas for others by his requests alone.
    """
    if now < health.ejected_until:
        return health
    if suspect is not None and health.suspect in (None, suspect):
        return replace(health, suspect=suspect)
    suspect = suspect or health.suspect
    failures = health.failures + 1
    if failures < EJECTION_FAILURES:
        return ReplicaHealth(failures=failures, suspect=suspect)
    # The exponent is bounded, since a float overflows after 1000 failures.
    doublings = min(failures - EJECTION_FAILURES, 10)
    seconds = min(FIRST_EJECTION_SECONDS * 2**doublings, MAX_EJECTION_SECONDS)
    return ReplicaHealth(failures=failures, ejected_until=now + seconds, suspect=suspect)


def start_share(seconds_ready: float) -> float:
    """Return the share of its usual load that a replica takes so long after it became ready.

    It grows linearly over `SLOW_START_SECONDS`, from `MIN_START_SHARE` to 1.
    """
    return min(1.0, max(MIN_START_SHARE, seconds_ready / SLOW_START_SECONDS))
