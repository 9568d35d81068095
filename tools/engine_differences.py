"""The page of what the look-alike engine does otherwise than the real one."""

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

HELD = Path("tests/conformance")
_HOW = """\
`make test-vllm` starts a real vLLM {version} on the CPU and [tessera-sim](../engine-sim.md) with
the same arguments, in three configurations: *plain* has defaults, *rich* has every option of the
API on, *tight* speculates with few KV blocks, and its real engine runs as another user, who can
write only where the pod declares it. Both get the same requests.

Of an answer the status, the kind of content, the keys of the body or of each event, the blamed
parameter and the ending are compared; of a metric its type, its labels with their values, and the
bounds of its buckets; of a scenario what a client and the metrics saw. What the real one did is
kept in `tests/conformance/recorded.json`, and every `make check` holds the look-alike against it.
"""


def page(root: Path) -> str:
    """From the differences file and what was recorded of the real engine."""
    held = root / HELD
    recorded = json.loads((held / "recorded.json").read_text(encoding="utf-8"))
    found = tomllib.loads((held / "differences.toml").read_text(encoding="utf-8"))["difference"]
    cases = recorded["cases"]
    lines = [
        "# Where the look-alike engine differs",
        "",
        _HOW.format(version=recorded["version"]),
        *_counts(cases, len(found)),
        "",
        "A case may differ only with a line in `tests/conformance/differences.toml`:",
        "",
        "| case | reason |",
        "| --- | --- |",
        *(f"| {one['case']} | {one['reason']} |" for one in found),
    ]
    return "\n".join(lines) + "\n"


def _counts(cases: dict[str, Any], differing: int) -> list[str]:
    kinds = Counter(_kind(name) for name in cases)
    told = [f"| {kind} | {kinds[kind]} |" for kind in ("requests", "metrics", "scenarios")]
    total = f"| all, of which differing | {len(cases)}, {differing} |"
    return ["| cases | how many |", "| --- | --- |", *told, total]


def _kind(name: str) -> str:
    case = name.partition("/")[2]
    if case.startswith("metric "):
        return "metrics"
    return "scenarios" if case.startswith("scenario ") else "requests"
