"""Snapshot files: everything that a plan reads, as one JSON document."""

import gzip
import json
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from tessera.cli.errors import CommandError
from tessera.cli.fleet import Fleet
from tessera.cli.trim import masked
from tessera.domain.autoscale import ScalingHistory
from tessera.domain.snapshot import Readings, Ref

FORM = 1
"""Raised when files of before cannot be read any more."""
_MAGIC = b"\x1f\x8b"


class SnapshotFile(BaseModel):
    """The document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["TesseraSnapshot"] = "TesseraSnapshot"
    form: int = FORM
    tessera: str
    """The version that wrote it."""
    at: AwareDatetime
    objects: Mapping[str, tuple[Mapping[str, Any], ...]]
    unread: tuple[str, ...] = ()
    readings: Mapping[str, Any] | None = None
    """All fields of `Readings`, those by service or pod as pairs, since keys of JSON are texts."""
    memory: tuple[tuple[Ref, ScalingHistory], ...] = ()


def tessera_version() -> str:
    """The version of this program."""
    return version("tessera")


def written(fleet: Fleet) -> str:
    """A fleet as the text of a file; equal fleets give equal texts."""
    saved = SnapshotFile(
        tessera=tessera_version(),
        at=fleet.at,
        objects={plural: tuple(bodies) for plural, bodies in sorted(fleet.objects.items())},
        unread=fleet.unread,
        readings=None if fleet.readings is None else _saved(fleet.readings),
        memory=tuple(sorted(fleet.memory.items())),
    )
    return json.dumps(saved.model_dump(mode="json"), indent=1) + "\n"


_FIELDS = get_type_hints(Readings)
"""What the domain adds to its readings is saved without a word here."""


def _saved(readings: Readings) -> dict[str, Any]:
    told = {}
    for name, hint in _FIELDS.items():
        value: Any = getattr(readings, name)
        value = masked(value) if isinstance(value, str) else value
        pairs = tuple(sorted(value.items())) if _by_key(hint) else value
        told[name] = _adapter(hint).dump_python(pairs, mode="json")
    return told


def _readings(saved: Mapping[str, Any]) -> Readings:
    """ValidationError for what cannot be read; what another version added is left out."""
    known = {name: hint for name, hint in _FIELDS.items() if name in saved}
    values: dict[str, Any] = {}
    for name, hint in known.items():
        value = _adapter(hint).validate_python(saved[name])
        values[name] = dict(value) if _by_key(hint) else value
    return Readings(**values)


def _by_key(hint: Any) -> bool:
    return get_origin(hint) is Mapping


def _adapter(hint: Any) -> TypeAdapter[Any]:
    if not _by_key(hint):
        return TypeAdapter(hint)
    pair = GenericAlias(tuple, get_args(hint))
    pairs: Any = GenericAlias(tuple, (pair, ...))
    return TypeAdapter(pairs)


def save(name: str, text: str) -> None:
    """Write a file, compressed when its name says so."""
    raw = text.encode()
    try:
        Path(name).write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    except OSError as error:
        raise CommandError(f"{name} cannot be written: {error.strerror}") from error


def read(name: str) -> tuple[Fleet, str]:
    """The fleet of a file, and the version that wrote it; CommandError when it is none."""
    try:
        raw = Path(name).read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(_MAGIC) else raw).decode()
        body = json.loads(text)
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise CommandError(
            f"{name} is damaged, or no snapshot file: {error}. Make it again with tessera "
            "snapshot save"
        ) from error
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror or error}") from error
    return _parsed(name, body)


def _parsed(name: str, body: Any) -> tuple[Fleet, str]:
    if not isinstance(body, dict) or body.get("kind") != "TesseraSnapshot":
        raise CommandError(f"{name} is no snapshot file; tessera snapshot save makes one")
    if body.get("form") != FORM:
        raise CommandError(
            f"{name} was made by tessera {body.get('tessera')} in form {body.get('form')}, and "
            f"tessera {tessera_version()} reads form {FORM}; plan it with that version"
        )
    try:
        saved = SnapshotFile.model_validate(body)
        fleet = _fleet(saved)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise CommandError(f"{name} is damaged: {where}: {fault['msg']}") from error
    except TypeError as error:
        raise CommandError(f"{name} is damaged: readings: {error}") from error
    return fleet, saved.tessera


def _fleet(saved: SnapshotFile) -> Fleet:
    return Fleet(
        at=saved.at,
        objects={plural: [dict(one) for one in found] for plural, found in saved.objects.items()},
        unread=saved.unread,
        readings=None if saved.readings is None else _readings(saved.readings),
        memory=dict(saved.memory),
    )
