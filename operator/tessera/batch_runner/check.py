"""`tessera-batch check` validates the input and the output path; it needs no GPU."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from tessera.api.text import counted
from tessera.batch_runner.answers import parts, publish
from tessera.batch_runner.checked_input import changed_error
from tessera.batch_runner.errors import (
    BatchError,
    InputChangedError,
    RefusedError,
    StorageRefusedError,
    TransientError,
    storage_errors,
)
from tessera.batch_runner.files import link_or_move, open_regular, sweep_idle_folders
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input import manifest
from tessera.batch_runner.input.manifest import InputManifest
from tessera.batch_runner.input.rows import RequestTarget
from tessera.batch_runner.input.scan import (
    InputLine,
    InputScan,
    LineFault,
    ScanFindings,
    read_lines,
)

log = logging.getLogger(__name__)


class BatchPaths(BaseModel):
    """Paths of a batch on its volume, as the command line names them."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    input: Path
    output: Path
    errors: Path
    work: Path

    @property
    def results(self) -> tuple[Path, Path]:
        return self.output, self.errors


def check(
    paths: BatchPaths, served: RequestTarget, heartbeat: WorkHeartbeat
) -> tuple[int, dict[str, Any]]:
    """Check the batch and write its manifest; return the exit code and the report."""
    paid = False
    try:
        paid = parts.has_parts(paths.work)
        _prepare_work(paths, paid=paid)
        findings, input_bytes, digest = _scan_input(paths.input, served, heartbeat)
        if paid:
            _refuse_another_input(paths, input_bytes, digest)
        if findings.fault_count:
            return RefusedError.code, _refusal_report(findings)
        with storage_errors(paths.work, "write the manifest into"):
            manifest.save(paths.work, _build_manifest(findings, input_bytes, digest))
    except BatchError as error:
        # An earlier check could use these paths and this input, so the trouble may pass.
        trouble = paid and isinstance(error, StorageRefusedError | InputChangedError)
        code = TransientError.code if trouble else error.code
        return code, _failure_report(str(error), rows=0)
    valid = {"phase": "check", "ok": True, "rows": findings.rows, "url": findings.url}
    claim = os.path.realpath(paths.work.parent.parent)
    files = [os.path.relpath(_where_links_lead(path), claim) for path in paths.results]
    counts = {"inputTokens": findings.input_tokens, "answers": findings.answers}
    return 0, {**valid, **counts, "files": files}


def _where_links_lead(path: Path) -> Path:
    """Return the path of a file that does not exist yet, without links of folders."""
    return Path(os.path.realpath(path.parent), path.name)


def _refusal_report(findings: ScanFindings) -> dict[str, Any]:
    faults = findings.faults
    first = faults[0]
    message = (
        f"the input has {counted(findings.fault_count, 'invalid row')}, first line {first.line}: "
        f"{first.fault.message}"
    )
    for line_fault in faults:
        where = f"lines {line_fault.lines}" if line_fault.lines else f"line {line_fault.line}"
        log.error("%s: %s: %s", where, line_fault.fault.code, line_fault.fault.message)
    return _failure_report(message, findings.rows, findings.fault_count) | {
        "errors": error_list(faults)
    }


def _failure_report(message: str, rows: int, fault_count: int = 0) -> dict[str, Any]:
    fields = {"phase": "check", "ok": False, "rows": rows, "errorCount": fault_count, "errors": []}
    return {**fields, "message": message}


def error_list(faults: Sequence[LineFault]) -> list[dict[str, Any]]:
    """Return the faults in the form of OpenAI's batch errors; one with many lines has `lines`."""
    return [
        {
            "line": line_fault.line,
            "code": line_fault.fault.code,
            "message": line_fault.fault.message,
            "param": line_fault.fault.param,
            **({"lines": line_fault.lines} if line_fault.lines else {}),
        }
        for line_fault in faults
    ]


def _prepare_work(paths: BatchPaths, *, paid: bool) -> None:
    """Refuse what can be refused before the input is read; RefusedError names the fix."""
    with storage_errors(paths.work, "create the work folder"):
        paths.work.mkdir(parents=True, exist_ok=True)
    output, errors = map(_where_links_lead, paths.results)
    if output == errors or output in errors.parents:
        raise RefusedError(
            f"the errors file {paths.errors} and the output {paths.output} need the same name; "
            "set spec.errors to another path"
        )
    if not paid:
        publish.refuse_unowned(paths.work, paths.output, paths.errors)
    for folder in sorted({paths.output.parent, paths.errors.parent}):
        _probe_folder(paths.work, folder)
    sweep_idle_folders(paths.work)


def _probe_folder(work: Path, folder: Path) -> None:
    """Publish an empty file into the folder in the way of results, then delete it."""
    source, target = work / "probe", folder / f".tessera-probe-{work.name}"
    with storage_errors(source, "write"):
        source.touch()
    try:
        with storage_errors(folder, "write results into"):
            target.unlink(missing_ok=True)
            link_or_move(source, target)
            target.unlink()
    finally:
        source.unlink(missing_ok=True)


def _scan_input(
    path: Path, served: RequestTarget, heartbeat: WorkHeartbeat
) -> tuple[ScanFindings, int, str]:
    """Return the findings, and size and SHA-256 of exactly the bytes that were scanned."""
    scan, digest = InputScan(served), hashlib.sha256()
    with storage_errors(path, "read the input"):
        if (opened := open_regular(path)) is None:
            message = f"the input {path} is not a regular file; set spec.input to a JSONL file"
            raise RefusedError(message)
        with opened as file:
            for line in read_lines(file, digest.update):
                scan.add(line)
                heartbeat.beat("%s rows checked", line.number)
            size = file.tell()
            findings = scan.findings(_lines_again(file, heartbeat))
    return findings, size, digest.hexdigest()


def _lines_again(file: BinaryIO, heartbeat: WorkHeartbeat) -> Iterator[InputLine]:
    file.seek(0)
    for line in read_lines(file, len):
        heartbeat.beat("%s rows compared", line.number)
        yield line


def _build_manifest(findings: ScanFindings, input_bytes: int, digest: str) -> InputManifest:
    return InputManifest(
        rows=findings.rows,
        bytes=input_bytes,
        sha256=digest,
        url=findings.url,
        input_tokens=findings.input_tokens,
        max_tokens=findings.max_tokens_sum,
        shards=manifest.build_shards(findings.offsets, findings.rows),
    )


def _refuse_another_input(paths: BatchPaths, input_bytes: int, digest: str) -> None:
    """Raise InputChangedError: answers of another input would count as answers of these rows."""
    checked = manifest.load(paths.work)
    if (input_bytes, digest) != (checked.bytes, checked.sha256):
        raise changed_error(paths.input, checked, input_bytes)
