"""What a real engine was seen to do, kept with its version."""

import json
from pathlib import Path
from typing import Any

from tests.conformance.configurations import Configuration
from tests.conformance.seen import Facts

RECORDED = Path(__file__).with_name("recorded.json")


def version() -> object:
    """The real engine's."""
    return _read()["version"]


def recorded(given: Configuration) -> dict[str, Facts]:
    """The facts of one configuration."""
    cases: dict[str, Facts] = _read()["cases"]
    return {name: facts for name, facts in cases.items() if name.startswith(f"{given.name}/")}


def record(given: Configuration, engine_version: str, seen: dict[str, Facts]) -> None:
    """Put these in the place of the configuration's; one case a line."""
    old = _read()["cases"] if RECORDED.exists() else {}
    others = {name: facts for name, facts in old.items() if not name.startswith(f"{given.name}/")}
    lines = (
        f"{json.dumps(name)}: {json.dumps(facts, sort_keys=True)}"
        for name, facts in sorted({**others, **seen}.items())
    )
    body = ",\n".join(lines)
    text = f'{{"version": {json.dumps(engine_version)}, "cases": {{\n{body}\n}}}}\n'
    RECORDED.write_text(text, encoding="utf-8")


def _read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content
