"""The comparison as it stands in the documentation: `python -m fit.pages` writes it."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo.cluster import ROOT
from fit.figures import GOAL

FOLDER = ROOT / "docs" / "figures"
PAGE = ROOT / "docs" / "compared-with-vllm.md"
_TABLE = re.compile(r"<!-- table: (?P<name>\w+) -->.*?<!-- end -->", re.DOTALL)
_TIMES = (
    ("TTFT P50", "ttft", "p50"),
    ("P95", "ttft", "p95"),
    ("TPOT P50", "tpot", "p50"),
    ("P95", "tpot", "p95"),
)


def table(loads: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each load with its four latencies."""
    yield "| load | latency | vLLM | tessera-sim | error | machine alone | error |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for load in loads:
        kind = "fitted" if load["fitted"] else "predicted"
        for latency in load["latencies"]:
            cells = (
                f"{load['load']} ({kind})" if latency is load["latencies"][0] else "",
                latency["name"],
                f"{latency['vllm_ms']:.1f} ms",
                f"{latency['tessera_sim_ms']:.1f} ms",
                _error(latency["tessera_sim_error"]),
                f"{latency['machine_ms']:.1f} ms",
                _error(latency["machine_error"]),
            )
            yield f"| {' | '.join(cells)} |"


def side_by_side(real: dict[str, Any], sim: dict[str, Any]) -> Iterator[str]:
    """The same sweep on both, load by load: first the one, then the other."""
    heads = ("concurrency", "requests/s", "output tokens/s", *(name for name, _, _ in _TIMES))
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for first_level, second_level in zip(real["levels"], sim["levels"], strict=True):
        cells = (
            first_level["load"],
            *(
                f"{first:.{digits}f} / {second:.{digits}f}{unit}"
                for first, second, digits, unit in _pairs(first_level, second_level)
            ),
        )
        yield f"| {' | '.join(cells)} |"


def _pairs(
    first_level: dict[str, Any], second_level: dict[str, Any]
) -> Iterator[tuple[float, float, int, str]]:
    yield first_level["requestsPerSecond"], second_level["requestsPerSecond"], 2, ""
    yield first_level["outputTokensPerSecond"], second_level["outputTokensPerSecond"], 0, ""
    for _, name, percentile in _TIMES:
        seconds = [
            level["latencySeconds"][name][percentile] for level in (first_level, second_level)
        ]
        yield seconds[0] * 1e3, seconds[1] * 1e3, 0 if seconds[0] > 0.1 else 1, " ms"


def committed(name: str, folder: Path = FOLDER) -> Any:
    """A committed file of figures."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def _error(share: float) -> str:
    return f"{share:+.1%}{', missed' * (abs(share) > GOAL)}"


def with_tables(page: str) -> str:
    """The page's text with both tables as the committed figures tell them."""
    tables = {
        "fit": table(committed("fit")["loads"]),
        "sweep": side_by_side(committed("bench-vllm"), committed("bench-tessera-sim")),
    }

    def filled(mark: re.Match[str]) -> str:
        lines = "\n".join(tables[mark["name"]])
        return f"<!-- table: {mark['name']} -->\n{lines}\n<!-- end -->"

    return _TABLE.sub(filled, page)


def main() -> None:
    """Write both tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
