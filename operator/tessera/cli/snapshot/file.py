"""Snapshot files: the whole input of a plan in one JSON document."""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from tessera import __version__
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs, use_catalogs
from tessera.cli.trim import mask_secrets
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Readings, Ref
from tessera.domain.placement.pod_template import allowed_keys
from tessera.domain.scaling.state import ScalingHistory

# Raised when older files can no longer be read.
FORMAT_VERSION = 2
_GZIP_MAGIC = b"\x1f\x8b"


class SnapshotFile(BaseModel):
    """The JSON document."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    kind: Literal["TesseraSnapshot"] = "TesseraSnapshot"
    format_version: int = FORMAT_VERSION
    tessera: str
    """The version that wrote it."""
    at: AwareDatetime
    objects: Mapping[str, tuple[Mapping[str, Any], ...]]
    read_errors: tuple[str, ...] = ()
    readings: Mapping[str, Any] | None = None
    """All fields of `Readings`; mappings as pairs, since JSON keys are strings."""
    demand: tuple[tuple[Ref, GatewayDemand], ...] | None = None
    scaling_history: tuple[tuple[Ref, ScalingHistory], ...] = ()
    classes: ServiceClasses = BUILT_IN_CLASSES
    catalogs: str = ""
    """Document of the GPUs and models that the installation adds to the catalog."""
    pod_keys: tuple[str, ...] = ()
    """Keys of labels and annotations that services may give their pods."""
    gateways: bool = False


def serialize(fleet: FleetInputs) -> str:
    """Return a fleet as the text of a file; equal fleets give equal texts."""
    document = SnapshotFile(
        tessera=__version__,
        at=fleet.at,
        objects={plural: tuple(bodies) for plural, bodies in sorted(fleet.objects.items())},
        read_errors=fleet.read_errors,
        readings=None if fleet.readings is None else _dump_readings(fleet.readings),
        demand=None if fleet.demand is None else tuple(sorted(fleet.demand.items())),
        scaling_history=tuple(sorted(fleet.scaling_history.items())),
        classes=fleet.classes,
        catalogs=fleet.catalogs,
        pod_keys=fleet.pod_keys,
        gateways=fleet.gateways,
    )
    return json.dumps(document.model_dump(mode="json", by_alias=True), indent=1) + "\n"


# By type hints, so that fields that the domain adds are saved too.
_FIELDS = get_type_hints(Readings)


def _dump_readings(readings: Readings) -> dict[str, Any]:
    dumped = {}
    for name, hint in _FIELDS.items():
        value: Any = getattr(readings, name)
        value = mask_secrets(value) if isinstance(value, str) else value
        pairs = tuple(sorted(value.items())) if _is_mapping(hint) else value
        dumped[name] = _adapter(hint).dump_python(pairs, mode="json")
    return dumped


def _parse_readings(dumped: Mapping[str, Any]) -> Readings:
    """Parse readings without fields of other versions; ValidationError for wrong values."""
    known_hints = {name: hint for name, hint in _FIELDS.items() if name in dumped}
    values: dict[str, Any] = {}
    for name, hint in known_hints.items():
        value = _adapter(hint).validate_python(dumped[name])
        values[name] = dict(value) if _is_mapping(hint) else value
    return Readings(**values)


def _is_mapping(hint: Any) -> bool:
    return get_origin(hint) is Mapping


def _adapter(hint: Any) -> TypeAdapter[Any]:
    if not _is_mapping(hint):
        return TypeAdapter(hint)
    pair = GenericAlias(tuple, get_args(hint))
    pairs: Any = GenericAlias(tuple, (pair, ...))
    return TypeAdapter(pairs)


def save(name: str, text: str) -> None:
    """Write a file, compressed if its name ends in .gz."""
    raw = text.encode()
    try:
        Path(name).write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    except OSError as error:
        raise CommandError(f"{name}: cannot write: {error.strerror}") from error


def read(name: str) -> tuple[FleetInputs, str]:
    """Return the fleet of a file and the version that wrote it; CommandError if unreadable."""
    try:
        raw = Path(name).read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw).decode()
        body = json.loads(text)
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise CommandError(
            f"{name}: not a snapshot file, or damaged: {error}. Write it again with tessera "
            "snapshot "
            "save"
        ) from error
    except OSError as error:
        raise CommandError(f"{name}: cannot read: {error.strerror or error}") from error
    return _parse_document(name, body)


def _parse_document(name: str, body: Any) -> tuple[FleetInputs, str]:
    if not isinstance(body, dict) or body.get("kind") != "TesseraSnapshot":
        raise CommandError(f"{name}: not a snapshot file; tessera snapshot save writes one")
    if (format_version := body.get("formatVersion", 1)) != FORMAT_VERSION:
        raise CommandError(
            f"{name}: format {format_version} of tessera {body.get('tessera')}, but tessera "
            f"{__version__} reads format {FORMAT_VERSION}; use that version"
        )
    try:
        document = SnapshotFile.model_validate(body)
        fleet = _to_fleet_inputs(document)
    except ValidationError as error:
        first_error = error.errors()[0]
        location = ".".join(map(str, first_error["loc"]))
        raise CommandError(f"{name}: damaged: {location}: {first_error['msg']}") from error
    except TypeError as error:
        raise CommandError(f"{name}: damaged: readings: {error}") from error
    return fleet, document.tessera


def _to_fleet_inputs(document: SnapshotFile) -> FleetInputs:
    use_catalogs(document.catalogs)
    allowed_keys.set(frozenset(document.pod_keys))
    return FleetInputs(
        at=document.at,
        objects={
            plural: [dict(body) for body in bodies] for plural, bodies in document.objects.items()
        },
        read_errors=document.read_errors,
        readings=None if document.readings is None else _parse_readings(document.readings),
        demand=None if document.demand is None else dict(document.demand),
        scaling_history=dict(document.scaling_history),
        classes=document.classes,
        catalogs=document.catalogs,
        pod_keys=document.pod_keys,
        gateways=document.gateways,
    )
