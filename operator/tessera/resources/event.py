"""Event of the API server (`events.k8s.io/v1`) from a note about an object."""

from dataclasses import dataclass
from datetime import datetime

from tessera.api.api_resource import ApiResource
from tessera.api.text import one_line
from tessera.domain.names import FIELD_MANAGER
from tessera.domain.reporting.event_note import EventNote
from tessera.resources.api_resources import RECORDED_EVENTS
from tessera.resources.manifest import ObjectKey, ObjectManifest, partial_manifest

# The API server accepts Events of cluster-scoped objects only in this namespace.
CLUSTER_EVENTS_NAMESPACE = "default"
_MAX_NOTE_BYTES = 1024
# The name of an object has up to 253 characters, as has that of an Event.
_MAX_OBJECT_NAME = 230


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSeries:
    """One Event about an object, and how often it was repeated."""

    kind: ApiResource
    key: ObjectKey
    uid: str
    note: EventNote
    first: datetime
    last: datetime
    serial: int
    """Microseconds of `first`, raised where an earlier Event has them: names in this order."""
    count: int = 1


def event_manifest(series: EventSeries, reporting_instance: str) -> ObjectManifest:
    """Return the Event, with its series if it was repeated.

    Its name ends with its time, since kubectl lists Events of this version in the order of names.
    """
    key, note = series.key, series.note
    regarding = {
        "apiVersion": series.kind.api_version,
        "kind": series.kind.kind,
        "name": key.name,
        "uid": series.uid,
    }
    fields: dict[str, object] = {
        "eventTime": _format_time(series.first),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": reporting_instance,
        "action": note.action,
        "reason": note.reason,
        "type": "Warning" if note.is_warning else "Normal",
        "note": _shorten(one_line(note.message, _MAX_NOTE_BYTES)),
        "regarding": regarding | ({"namespace": key.namespace} if key.namespace else {}),
    }
    if series.count > 1:
        fields["series"] = {
            "count": series.count,
            "lastObservedTime": _format_time(series.last),
        }
    metadata = {
        "name": f"{key.name[:_MAX_OBJECT_NAME].rstrip('.-')}.{series.serial:016x}",
        "namespace": key.namespace or CLUSTER_EVENTS_NAMESPACE,
    }
    return partial_manifest(RECORDED_EVENTS, metadata, **fields)


def _format_time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _shorten(text: str) -> str:
    """Return the text within the API server's limit, which counts bytes."""
    encoded = text.encode()
    if len(encoded) <= _MAX_NOTE_BYTES:
        return text
    return encoded[: _MAX_NOTE_BYTES - 3].decode(errors="ignore") + "…"
