"""Who wrote what, from the audit log of the API server."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

# Leases are renewed all the time; reviews of those who read its metrics write nothing.
_UNCOUNTED = ("leases", "tokenreviews", "subjectaccessreviews")
OPERATOR = "system:serviceaccount:tessera-system:tessera-operator"
# When, what, which object.
Write: TypeAlias = tuple[datetime, str, str]


@dataclass(slots=True)
class Audit:
    """Reads on from where it stopped."""

    path: Path
    _offset: int = 0

    def skip(self) -> None:
        self._offset = self.path.stat().st_size

    def writes(self) -> list[Write]:
        """The operator's writes since the last look, those that count."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._offset += end
        return [
            write for line in text[:end].splitlines() if (write := _parse_write(line)) is not None
        ]


def kinds(writes: list[Write]) -> Counter[str]:
    return Counter(what for _, what, _ in writes)


def _parse_write(line: bytes) -> Write | None:
    if OPERATOR.encode() not in line:
        return None
    event = json.loads(line)
    about = event["objectRef"]
    if event["user"]["username"] != OPERATOR or about["resource"] in _UNCOUNTED:
        return None
    at = datetime.fromisoformat(event["stageTimestamp"])
    what = "/".join(filter(None, (event["verb"], about["resource"], about.get("subresource"))))
    return at, what, f"{about.get('namespace', '')}/{about.get('name', '')}"
