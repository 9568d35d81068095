"""`tessera-batch check`: is the input valid, and can the output be written? Needs no GPU."""

import hashlib
import logging
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tessera.batch_runner import manifest, parts, publish
from tessera.batch_runner.errors import BatchError, RefusedError, storage_error
from tessera.batch_runner.files import link_or_move
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.manifest import InputManifest
from tessera.batch_runner.scan import (
    InputScan,
    LineFault,
    ScanFindings,
    duplicate_fault,
    read_lines,
    with_faults,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPaths:
    """The paths of a batch."""

    input: Path
    output: Path
    work: Path


def check(paths: BatchPaths, heartbeat: WorkHeartbeat) -> tuple[int, dict[str, Any]]:
    """Check everything and write the manifest; the exit code and the report."""
    try:
        _prepare(paths)
        findings, size, digest = _scan_input(paths.input, heartbeat)
        if findings.fault_count:
            return RefusedError.code, _refusal(findings)
        _save_manifest(paths, _build_manifest(findings, size, digest))
    except BatchError as error:
        return error.code, _failure(str(error), rows=0)
    valid = {"phase": "check", "ok": True, "rows": findings.rows, "url": findings.url}
    return 0, {**valid, "inputTokens": findings.input_tokens}


def _refusal(findings: ScanFindings) -> dict[str, Any]:
    first = findings.faults[0]
    message = f"the input has {findings.fault_count} faulty rows; the first one is in line "
    message += f"{first.line}: {first.fault.message}"
    for line_fault in findings.faults:
        log.error(
            "line %s: %s: %s", line_fault.line, line_fault.fault.code, line_fault.fault.message
        )
    return _failure(message, findings.rows, findings.fault_count) | {
        "errors": error_list(findings.faults)
    }


def _failure(message: str, rows: int, count: int = 0) -> dict[str, Any]:
    fields = {"phase": "check", "ok": False, "rows": rows, "errorCount": count, "errors": []}
    return {**fields, "message": message}


def error_list(faults: Sequence[LineFault]) -> list[dict[str, Any]]:
    """Faults in the form of OpenAI's batch errors."""
    return [
        {
            "line": line_fault.line,
            "code": line_fault.fault.code,
            "message": line_fault.fault.message,
            "param": line_fault.fault.param,
        }
        for line_fault in faults
    ]


def _prepare(paths: BatchPaths) -> None:
    """Everything that can be refused before the input is read."""
    try:
        mode = paths.input.stat().st_mode
    except OSError as error:
        raise storage_error(error, paths.input, "read the input") from error
    if not stat.S_ISREG(mode):
        raise RefusedError(f"the input {paths.input} is not a file; give the path of a JSONL file")
    try:
        paths.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, paths.work, "create the work folder") from error
    publish.refuse_unowned(paths.work, paths.output)
    _probe(paths.work, paths.output)


def _probe(work: Path, output: Path) -> None:
    """Publish an empty file beside the output, the way results will be, and take it back."""
    source, target = work / "probe", output.parent / f".tessera-probe-{work.name}"
    try:
        source.touch()
    except OSError as error:
        raise storage_error(error, source, "write") from error
    try:
        target.unlink(missing_ok=True)
        link_or_move(source, target)
        target.unlink()
    except OSError as error:
        raise storage_error(error, output.parent, "write the output into") from error
    finally:
        source.unlink(missing_ok=True)


def _scan_input(path: Path, heartbeat: WorkHeartbeat) -> tuple[ScanFindings, int, str]:
    """The findings, and size and digest of exactly the bytes that were scanned."""
    scan, digest = InputScan(), hashlib.sha256()
    try:
        with path.open("rb") as file:
            for line in read_lines(file, digest.update):
                scan.add(line)
                heartbeat.beat("%s rows checked", line.number)
            size = file.tell()
            findings = with_faults(scan.findings(), _duplicate_faults(scan, file, heartbeat))
    except OSError as error:
        raise storage_error(error, path, "read the input") from error
    return findings, size, digest.hexdigest()


def _duplicate_faults(
    scan: InputScan, file: BinaryIO, heartbeat: WorkHeartbeat
) -> Iterator[LineFault]:
    if (finder := scan.duplicate_finder()) is None:
        return
    file.seek(0)
    for line in read_lines(file, len):
        heartbeat.beat("%s rows compared", line.number)
        if (duplicate := duplicate_fault(finder, line)) is not None:
            yield duplicate


def _build_manifest(findings: ScanFindings, size: int, digest: str) -> InputManifest:
    return InputManifest(
        rows=findings.rows,
        bytes=size,
        sha256=digest,
        url=findings.url,
        input_tokens=findings.input_tokens,
        max_tokens=findings.max_tokens,
        shards=manifest.build_shards(findings.offsets, findings.rows),
    )


def _save_manifest(paths: BatchPaths, new_manifest: InputManifest) -> None:
    """Never under answers of another input: their rows would be taken for these."""
    if parts.has_parts(paths.work) and manifest.load(paths.work).sha256 != new_manifest.sha256:
        raise RefusedError(
            f"{paths.input} changed after rows of it were answered; put the old file back, or "
            "create a new BatchInference for the new one"
        )
    try:
        manifest.save(paths.work, new_manifest)
    except OSError as error:
        raise storage_error(error, paths.work, "write the manifest into") from error
