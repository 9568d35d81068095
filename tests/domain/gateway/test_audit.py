from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tessera.domain.gateway.audit import KeyChange, KeyEvent, key_events
from tessera.domain.gateway.directory import ApiKey

NOW = datetime(2026, 11, 22, tzinfo=UTC)
BEFORE = NOW - timedelta(seconds=1)
KEY = ApiKey(name="laptop", digest="0123456789abcdef" * 4, tenant="team-a")
OTHER = replace(KEY, name="ci", digest="f" * 64)


def changes(before: list[ApiKey], after: list[ApiKey]) -> list[tuple[str, KeyChange]]:
    events = key_events(by_digest(before), by_digest(after), BEFORE, NOW)
    return [(event.key.name, event.change) for event in events]


def by_digest(keys: list[ApiKey]) -> dict[str, ApiKey]:
    return {key.digest: key for key in keys}


def test_created_changed_and_revoked_keys_are_events() -> None:
    assert changes([], [KEY]) == [("laptop", KeyChange.CREATED)]
    assert changes([KEY], [replace(KEY, models=("llama",))]) == [("laptop", KeyChange.CHANGED)]
    assert changes([KEY, OTHER], [OTHER]) == [("laptop", KeyChange.REVOKED)]
    assert changes([KEY], [KEY]) == []


def test_a_rotated_key_is_two_events_under_one_name() -> None:
    rotated = replace(KEY, digest="e" * 64)
    assert changes([KEY], [KEY, rotated]) == [("laptop", KeyChange.CREATED)]
    assert changes([KEY, rotated], [rotated]) == [("laptop", KeyChange.REVOKED)]


def test_a_key_expires_once() -> None:
    def expiring(at: datetime) -> list[ApiKey]:
        return [replace(KEY, expires=at)]

    assert changes(expiring(NOW), expiring(NOW)) == [("laptop", KeyChange.EXPIRED)]
    assert changes(expiring(BEFORE), expiring(BEFORE)) == []
    assert changes(expiring(NOW + BEFORE.resolution), expiring(NOW + BEFORE.resolution)) == []


def test_events_come_in_the_order_of_their_keys() -> None:
    assert key_events(by_digest([OTHER]), by_digest([KEY]), BEFORE, NOW) == (
        KeyEvent(KeyChange.REVOKED, OTHER),
        KeyEvent(KeyChange.CREATED, KEY),
    )
