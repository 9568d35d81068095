"""The report: what a container leaves in its termination message, 4,096 bytes at most."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.batch.scan import Found

log = logging.getLogger(__name__)

LARGEST = 4096
_MESSAGE = 1000


def encoded(report: Mapping[str, Any]) -> bytes:
    """The report as JSON that fits: the last errors go first, then the end of the message."""
    kept = dict(report)
    kept["message"] = _short(str(kept.get("message", "")), _MESSAGE)
    while len(content := _json(kept)) > LARGEST and kept.get("errors"):
        kept["errors"] = kept["errors"][:-1]
    if len(content) > LARGEST:
        # Every character takes at most twelve bytes as JSON.
        kept["message"] = _short(kept["message"], _MESSAGE // 12)
        content = _json(kept)
    return content


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Leave the report in place, since the kubelet's file can be written but not renamed."""
    try:
        path.write_bytes(encoded(report))
    except OSError as error:
        log.error("the report could not be written to %s: %s", path, error.strerror)


def errors(faults: Sequence[Found]) -> list[dict[str, Any]]:
    """Faults in the form of OpenAI's batch errors."""
    return [
        {
            "line": found.line,
            "code": found.fault.code,
            "message": found.fault.message,
            "param": found.fault.param,
        }
        for found in faults
    ]


def _json(report: Mapping[str, Any]) -> bytes:
    return json.dumps(report, separators=(",", ":")).encode()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
