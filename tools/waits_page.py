"""The reference page of all kinds of waits, from their table in `domain/waits.py`."""

from datetime import timedelta

from tessera.api.meta import format_duration
from tessera.domain.waits import KINDS, WaitKind

PAGE = "docs/reference/waits.md"
_HEAD = """\
# Waits

Every reason that says that a change of a service, gate, batch or layout is held back belongs to one
kind of wait. The message of the condition, and so its Event, ends with what ends the wait and who
can act; `waitingSince` in the condition says since when. A wait without a limit ends by the act of
a person, and holds back nothing else: edits, ways back and restarts go on. Starts, downloads,
drains and stabilization windows are progress, and not listed.
"""


def page() -> str:
    """Return the page."""
    lines = [_HEAD, "| wait | ends when | at the latest | then | who can act | how |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        cells = (kind.name, kind.ends, _limit(kind), kind.then, kind.actor, kind.act)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Reasons", "", "| wait | reasons |", "| --- | --- |"]
    for kind in KINDS:
        reasons = ", ".join(dict.fromkeys(f"`{reason}`" for reason in kind.reasons))
        lines.append(f"| {kind.name} | {reasons} |")
    return "\n".join(lines) + "\n"


def _limit(kind: WaitKind) -> str:
    limit = kind.limit
    if limit is None:
        return ""
    return format_duration(limit) if isinstance(limit, timedelta) else limit
