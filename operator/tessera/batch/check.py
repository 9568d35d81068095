"""`tessera-batch check`: is the input valid, and can the output be written? Needs no GPU."""

import hashlib
import logging
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tessera.batch import lines, manifest, parts, publish, report
from tessera.batch.errors import BatchError, RefusedError, storage
from tessera.batch.files import place
from tessera.batch.manifest import Manifest
from tessera.batch.pulse import Pulse
from tessera.batch.scan import Findings, Found, Scan, repeated, with_faults

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The paths of a batch."""

    input: Path
    output: Path
    work: Path


def check(places: Places, pulse: Pulse) -> tuple[int, dict[str, Any]]:
    """Check everything and write the manifest; the exit code and the report."""
    try:
        _prepared(places)
        findings, size, digest = _scanned(places.input, pulse)
        if findings.fault_count:
            return RefusedError.code, _refusal(findings)
        _save(places, _manifest(findings, size, digest))
    except BatchError as error:
        return error.code, _failure(str(error), rows=0)
    valid = {"phase": "check", "ok": True, "rows": findings.rows, "url": findings.url}
    return 0, {**valid, "inputTokens": findings.input_tokens}


def _refusal(findings: Findings) -> dict[str, Any]:
    first = findings.faults[0]
    told = f"the input has {findings.fault_count} faulty rows; the first one is in line "
    told += f"{first.line}: {first.fault.message}"
    for found in findings.faults:
        log.error("line %s: %s: %s", found.line, found.fault.code, found.fault.message)
    return _failure(told, findings.rows, findings.fault_count) | {
        "errors": report.errors(findings.faults)
    }


def _failure(message: str, rows: int, count: int = 0) -> dict[str, Any]:
    told = {"phase": "check", "ok": False, "rows": rows, "errorCount": count, "errors": []}
    return {**told, "message": message}


def _prepared(places: Places) -> None:
    """Everything that can be refused before the input is read."""
    try:
        mode = places.input.stat().st_mode
    except OSError as error:
        raise storage(error, places.input, "read the input") from error
    if not stat.S_ISREG(mode):
        raise RefusedError(f"the input {places.input} is not a file; give the path of a JSONL file")
    try:
        places.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage(error, places.work, "create the work folder") from error
    publish.refuse_foreign(places.work, places.output)
    _probe(places.work, places.output)


def _probe(work: Path, output: Path) -> None:
    """Publish an empty file beside the output, the way results will be, and take it back."""
    source, target = work / "probe", output.parent / f".tessera-probe-{work.name}"
    try:
        source.touch()
    except OSError as error:
        raise storage(error, source, "write") from error
    try:
        target.unlink(missing_ok=True)
        place(source, target)
        target.unlink()
    except OSError as error:
        raise storage(error, output.parent, "write the output into") from error
    finally:
        source.unlink(missing_ok=True)


def _scanned(path: Path, pulse: Pulse) -> tuple[Findings, int, str]:
    """The findings, and size and digest of exactly the bytes that were scanned."""
    scan, digest = Scan(), hashlib.sha256()
    try:
        with path.open("rb") as file:
            for line in lines.lines(file, digest.update):
                scan.take(line)
                pulse.beat("%s rows checked", line.number)
            size = file.tell()
            findings = with_faults(scan.findings(), _second_look(scan, file, pulse))
    except OSError as error:
        raise storage(error, path, "read the input") from error
    return findings, size, digest.hexdigest()


def _second_look(scan: Scan, file: BinaryIO, pulse: Pulse) -> Iterator[Found]:
    if (repeats := scan.repeats()) is None:
        return
    file.seek(0)
    for line in lines.lines(file, len):
        pulse.beat("%s rows compared", line.number)
        if (found := repeated(repeats, line)) is not None:
            yield found


def _manifest(findings: Findings, size: int, digest: str) -> Manifest:
    return Manifest(
        rows=findings.rows,
        bytes=size,
        sha256=digest,
        url=findings.url,
        input_tokens=findings.input_tokens,
        max_tokens=findings.max_tokens,
        shards=manifest.shards(findings.offsets, findings.rows),
    )


def _save(places: Places, found: Manifest) -> None:
    """Never under answers of another input: their rows would be taken for these."""
    if parts.any_in(places.work) and manifest.load(places.work).sha256 != found.sha256:
        raise RefusedError(
            f"{places.input} changed after rows of it were answered; put the old file back, or "
            "create a new BatchInference for the new one"
        )
    try:
        manifest.save(places.work, found)
    except OSError as error:
        raise storage(error, places.work, "write the manifest into") from error
