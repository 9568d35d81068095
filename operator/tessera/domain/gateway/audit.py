"""What happened to API keys, as a gateway sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tessera.domain.gateway.directory import ApiKey

_PREFIX_DIGITS = 12


class KeyChange(StrEnum):
    """What happened to a key."""

    CREATED = "Created"
    CHANGED = "Changed"
    """Its team, models, expiry or limits."""
    REVOKED = "Revoked"
    EXPIRED = "Expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEvent:
    """One line of the audit log."""

    change: KeyChange
    tenant: str
    name: str
    digest_prefix: str
    """First digits of the SHA-256: enough to tell two keys of one name apart."""
    expires: datetime | None


def key_events(
    before: Mapping[str, ApiKey], after: Mapping[str, ApiKey], since: datetime, now: datetime
) -> tuple[KeyEvent, ...]:
    """Compare the keys by digest of two directories, which were seen at `since` and `now`."""
    events = [_event(KeyChange.CREATED, after[digest]) for digest in after.keys() - before.keys()]
    events += [_event(KeyChange.REVOKED, before[digest]) for digest in before.keys() - after.keys()]
    for digest, key in after.items():
        if before.get(digest, key) != key:
            events.append(_event(KeyChange.CHANGED, key))
        if key.expires is not None and since < key.expires <= now:
            events.append(_event(KeyChange.EXPIRED, key))
    return tuple(sorted(events, key=lambda event: (event.tenant, event.name, event.digest_prefix)))


def _event(change: KeyChange, key: ApiKey) -> KeyEvent:
    return KeyEvent(
        change=change,
        tenant=key.tenant,
        name=key.name,
        digest_prefix=key.digest[:_PREFIX_DIGITS],
        expires=key.expires,
    )
