"""The report: what a container leaves in its termination message, 4,096 bytes at most."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.batch_runner.scan import LineFault

log = logging.getLogger(__name__)

MAX_REPORT_BYTES = 4096
_MAX_MESSAGE_LENGTH = 1000


def encode_report(report: Mapping[str, Any]) -> bytes:
    """The report as JSON that fits: the last errors go first, then the end of the message."""
    shortened = dict(report)
    shortened["message"] = _truncate(str(shortened.get("message", "")), _MAX_MESSAGE_LENGTH)
    while len(content := _json(shortened)) > MAX_REPORT_BYTES and shortened.get("errors"):
        shortened["errors"] = shortened["errors"][:-1]
    if len(content) > MAX_REPORT_BYTES:
        # Every character takes at most twelve bytes as JSON.
        shortened["message"] = _truncate(shortened["message"], _MAX_MESSAGE_LENGTH // 12)
        content = _json(shortened)
    return content


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Leave the report in place, since the kubelet's file can be written but not renamed."""
    try:
        path.write_bytes(encode_report(report))
    except OSError as error:
        log.error("the report could not be written to %s: %s", path, error.strerror)


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


def _json(report: Mapping[str, Any]) -> bytes:
    return json.dumps(report, separators=(",", ":")).encode()


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
