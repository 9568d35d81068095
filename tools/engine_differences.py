"""The page of the differences between the simulator and a real engine."""

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

HELD = Path("tests/conformance")
_HOW = """\
`make test-vllm` starts a real vLLM {version} on the CPU and [tessera-sim](../engine-sim.md) with
the same arguments, in three configurations: *plain* has defaults, *rich* has every option of the
API on, *tight* speculates with few KV blocks, and its real engine runs as another user that can
write only where the pod declares it. Both get the same requests.

The comparison covers status, content type, keys of the body or of each event, the parameter of an
error and the finish reason of a response; type, labels with their values and bucket bounds of a
metric; and what a client and the metrics saw in a scenario. `tests/conformance/recorded.json`
has the behavior of the real engine, and every `make check` compares the simulator with it.
"""


def page(root: Path) -> str:
    """From the differences file and what was recorded of the real engine."""
    folder = root / HELD
    recorded = json.loads((folder / "recorded.json").read_text(encoding="utf-8"))
    differences = tomllib.loads((folder / "differences.toml").read_text(encoding="utf-8"))[
        "difference"
    ]
    cases = recorded["cases"]
    lines = [
        "# Differences between the simulator and vLLM",
        "",
        _HOW.format(version=recorded["version"]),
        *_counts(cases, len(differences)),
        "",
        "A case may differ only with a line in `tests/conformance/differences.toml`:",
        "",
        "| case | reason |",
        "| --- | --- |",
        *(f"| {difference['case']} | {difference['reason']} |" for difference in differences),
    ]
    return "\n".join(lines) + "\n"


def _counts(cases: dict[str, Any], differing: int) -> list[str]:
    kinds = Counter(_kind(name) for name in cases)
    rows = [f"| {kind} | {kinds[kind]} |" for kind in ("requests", "metrics", "scenarios")]
    total = f"| all, of which differing | {len(cases)}, {differing} |"
    return ["| cases | how many |", "| --- | --- |", *rows, total]


def _kind(name: str) -> str:
    case = name.partition("/")[2]
    if case.startswith("metric "):
        return "metrics"
    return "scenarios" if case.startswith("scenario ") else "requests"
