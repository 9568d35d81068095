"""The access log and the audit log: one line of JSON each, without prompts, answers and keys."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, BinaryIO

import msgspec

from tessera.domain.gateway.audit import KeyEvent, key_events
from tessera.domain.gateway.directory import ApiKey
from tessera.domain.gateway.usage_record import FIELDS, NumberRange, UsageRecord
from tessera.domain.observed.tenant_keys import TenantKeys

_ENCODE = msgspec.json.Encoder().encode
# Clients choose the id and the model of a request.
_MAX_TEXT_LENGTH = 256
_NS_PER_MS = 1_000_000
# Of a SHA-256: enough to tell two keys of one name apart.
_PREFIX_DIGITS = 12
_WRITE_SECONDS = 0.1
_ALWAYS = [field for field in FIELDS if field.seen.log and not field.seen.beside]
_LOGGED = tuple(field.seen.log for field in _ALWAYS)
_LOGGED_OF = attrgetter(*(field.name for field in _ALWAYS))
_LOGGED_TIMES = tuple(field.seen.log for field in _ALWAYS if field.bound is NumberRange.TIME)
_BESIDE = [field for field in FIELDS if field.seen.log and field.seen.beside]
# Names in the log and of fields, by the field without which they say nothing.
_LOGGED_BESIDE = {
    beside: [(field.seen.log, field.name) for field in _BESIDE if field.seen.beside == beside]
    for beside in dict.fromkeys(field.seen.beside for field in _BESIDE)
}
# About 15,000 lines.
_MAX_WAITING_BYTES = 8 * 2**20


class BackgroundStream:
    """Writes lines in a thread: who reads a log slowly, or not at all, holds up no request."""

    def __init__(
        self,
        stream: BinaryIO,
        count_lost: Callable[[int], None] = lambda lines: None,  # noqa: ARG005
    ) -> None:
        """Take the stream; `count_lost` hears how many lines are lost, from any thread."""
        self._stream, self._count_lost = stream, count_lost
        self._waiting = bytearray()
        self._lock = threading.Lock()

    def write(self, lines: bytes) -> None:
        """Take lines, from any thread; they are lost where too many wait."""
        with self._lock:
            if len(self._waiting) + len(lines) <= _MAX_WAITING_BYTES:
                self._waiting += lines
                return
        self._count_lost(lines.count(b"\n"))

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            if self._waiting:
                await asyncio.to_thread(self.flush)
            await asyncio.sleep(_WRITE_SECONDS)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            lines, self._waiting = self._waiting, bytearray()
        self._stream.write(lines)
        self._stream.flush()


class KeyAudit:
    """Writes a line when a key appears, changes, expires or is revoked."""

    def __init__(self, write: Callable[[bytes], object], now: datetime) -> None:
        """Take `write`, which gets whole lines."""
        self._write, self._checked_at = write, now
        self._keys: Mapping[str, ApiKey] | None = None

    def check(self, keys: Mapping[str, ApiKey], now: datetime) -> None:
        """Write what happened since the last time; the first keys are there, and not created."""
        before = keys if self._keys is None else self._keys
        if events := key_events(before, keys, self._checked_at, now):
            self._write(audit_lines(events, now))
        self._keys, self._checked_at = keys, now

    def report_unreadable(self, secret: TenantKeys, now: datetime) -> None:
        """Write a line for each record of a Secret that is no key, with the field at fault."""
        for name, fault in sorted(secret.malformed.items()):
            fields = {
                "time": now,
                "event": "KeyUnreadable",
                "tenant": secret.tenant,
                "key": name,
                "secret": str(secret.secret),
                "fault": fault,
            }
            self._write(_line("audit", fields))


def audit_lines(events: Iterable[KeyEvent], now: datetime) -> bytes:
    """Return a line for each change of a key."""
    return b"".join(
        _line(
            "audit",
            {
                "time": now,
                "event": f"Key{event.change}",
                "tenant": event.key.tenant,
                "key": event.key.name,
                "digestPrefix": event.key.digest[:_PREFIX_DIGITS],
                "expires": event.key.expires,
            },
        )
        for event in events
    )


def access_line(record: UsageRecord) -> bytes:
    """Return the line of a request that ended, or of a call that did not answer: of 0 requests."""
    fields: dict[str, Any] = {"time": datetime.fromtimestamp(record.started_at_ns / 1e9, UTC)}
    fields |= zip(_LOGGED, _LOGGED_OF(record), strict=True)
    for name in _LOGGED_TIMES:
        if fields[name] is not None:
            fields[name] //= _NS_PER_MS
    for beside, named in _LOGGED_BESIDE.items():
        if getattr(record, beside):
            fields |= {log: getattr(record, name) for log, name in named}
    return _line("access", fields)


def _line(log: str, fields: dict[str, Any]) -> bytes:
    for name, value in fields.items():
        if isinstance(value, str) and (len(value) > _MAX_TEXT_LENGTH or not value.isascii()):
            # Half a surrogate pair has no encoding.
            fields[name] = value[:_MAX_TEXT_LENGTH].encode("utf-8", "replace").decode()
    return _ENCODE({"log": log, **fields}) + b"\n"
