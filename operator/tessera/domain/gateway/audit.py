"""What happened to API keys, as a gateway sees it."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from tessera.domain.gateway.directory import ApiKey

_ORDER = attrgetter("tenant", "name", "digest")


class KeyChange(StrEnum):
    """What happened to a key."""

    CREATED = "Created"
    CHANGED = "Changed"
    """Its team, models, expiry or limits."""
    REVOKED = "Revoked"
    EXPIRED = "Expired"


class KeyEvent(NamedTuple):
    """What happened to one key, as it is now or was last."""

    change: KeyChange
    key: ApiKey


def key_events(
    before: Mapping[str, ApiKey], after: Mapping[str, ApiKey], since: datetime, now: datetime
) -> tuple[KeyEvent, ...]:
    """Compare the keys by digest of two directories, which were seen at `since` and `now`."""
    events = [KeyEvent(KeyChange.CREATED, after[digest]) for digest in after.keys() - before.keys()]
    events += [
        KeyEvent(KeyChange.REVOKED, before[digest]) for digest in before.keys() - after.keys()
    ]
    for digest, key in after.items():
        if before.get(digest, key) != key:
            events.append(KeyEvent(KeyChange.CHANGED, key))
        if key.expires is not None and since < key.expires <= now:
            events.append(KeyEvent(KeyChange.EXPIRED, key))
    return tuple(sorted(events, key=lambda event: _ORDER(event.key)))
