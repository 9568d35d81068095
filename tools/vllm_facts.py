"""Write the facts of one captured vLLM version: vllm_facts.py CAPTURE.

CAPTURE holds `flags.json`, `metrics.json` and `routes-default.txt` as read from a running server of
that version. Only facts are taken over (names, types, bounds, labels, buckets, methods and paths),
one line each, in a stable order.
Metrics that the capture lacks and the conformance tests have seen in that version are added.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "operator/tessera/domain/data"
RECORDED = Path(__file__).parents[1] / "tests/conformance/recorded.json"
# The capture of a server that was started with default flags.
DEFAULT_SERVER = "metrics.txt"

_ACTIONS = {
    "_AppendAction": "append",
    "_HelpAction": "help",
    "_StoreTrueAction": "switch",
    "BooleanOptionalAction": "switch",
    "EnableDisableAction": "switch",
}
_TYPES = {
    "float": "float",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "sizeOrAuto",
    "int": "int",
    "loads": "json",
    "parse_type": "json",
    "union_dict_and_str": "jsonOrText",
    "_compute_kwargs": "json",
}
_SUPPRESSED = "==SUPPRESS=="


def flag_facts(option: dict[str, Any]) -> dict[str, Any]:
    """One flag, without what is empty."""
    action = _ACTIONS.get(option["action"], "store")
    kind = None if action in ("switch", "help") else _type(option)
    facts = {
        "options": option["flags"],
        "dest": option["dest"],
        "action": action,
        "type": kind,
        "nargs": option["nargs"] if option["nargs"] in ("?", "+") else None,
        "default": _default(option, kind),
        "choices": sorted(choice for choice in option["choices"] or () if choice is not None)
        or None,
        **(option["constraints"] or {}),
        "acceptsNone": option["accepts_none"] or None,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _type(option: dict[str, Any]) -> str:
    """Anonymous converters with choices only fold case and dashes of a word."""
    if option["type"] == "EngineArgs.add_cli_args" and option["choices"]:
        return "word"
    return _TYPES.get(option["type"], "str")


def _default(option: dict[str, Any], kind: str | None) -> Any:
    """The default; an object that the capture could only print is no usable value."""
    default = option["default"]
    printed = kind == "json" and isinstance(default, str)
    return None if printed or default == _SUPPRESSED else default


def metric_facts(metric: dict[str, Any]) -> dict[str, Any]:
    """One metric, without what is empty."""
    bounds = [float(bound) for bound in metric["buckets"] or () if bound != "+Inf"]
    facts = {
        "name": metric["name"],
        "type": metric["type"],
        "labels": metric["labels"],
        "buckets": bounds or None,
        "always": DEFAULT_SERVER in metric["seen_in"] or None,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def recorded_facts(version: str, known: set[str]) -> list[dict[str, Any]]:
    """Metrics that a real engine showed in the conformance tests and the capture has not."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    if recorded["version"] != version:
        return []
    named = {case.partition("/metric ")[2]: facts for case, facts in recorded["cases"].items()}
    return [
        {"name": name}
        | {key: named[name][key] for key in ("type", "labels", "buckets") if key in named[name]}
        for name in sorted(named.keys() - known)
        if name.startswith("vllm:") and not name.endswith("_created")
    ]


def route_facts(text: str) -> list[str]:
    """Methods and paths, `POST /tokenize`, from the lines that a server prints at its start."""
    rows = (line.split(", Methods: ") for line in text.splitlines())
    return sorted({f"{method} {path}" for path, of in rows for method in of.split(", ")})


def encode(
    version: str,
    source: str,
    flags: list[dict[str, Any]],
    metrics: list[dict[str, Any]],
    routes: Sequence[str] = (),
) -> str:
    """The file: one line for each flag, metric and, where a server printed them, path."""
    lists = {"flags": flags, "metrics": metrics, **({"routes": routes} if routes else {})}
    parts = [
        f"{json.dumps(name)}: {json.dumps(text)}"
        for name, text in (("version", version), ("source", source))
    ]
    parts += [f"{json.dumps(name)}: [\n{_lines(rows)}\n]" for name, rows in lists.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(rows: Sequence[object]) -> str:
    return ",\n".join(json.dumps(row) for row in rows)


def main(capture: Path) -> None:
    options = json.loads((capture / "flags.json").read_text(encoding="utf-8"))
    capture_metrics = json.loads((capture / "metrics.json").read_text(encoding="utf-8"))
    version = options["vllm"]
    flags = sorted((flag_facts(option) for option in options["options"]), key=lambda f: f["dest"])
    metrics = [metric_facts(metric) for metric in capture_metrics["metrics"]]
    metrics += recorded_facts(version, {metric["name"] for metric in metrics})
    metrics.sort(key=lambda metric: metric["name"])
    path = DATA / f"vllm-{version}.json"
    routes = route_facts((capture / "routes-default.txt").read_text(encoding="utf-8"))
    source = (
        f"vllm serve {version}: options of its argument parser, bounds of its config classes, "
        "/metrics and routes of running servers; `always` marks what a default server shows"
    )
    path.write_text(encode(version, source, flags, metrics, routes), encoding="utf-8")
    print(f"{path.name}: {len(flags)} flags, {len(metrics)} metrics, {len(routes)} routes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
