"""The observed behavior of a real engine, recorded with its version."""

import json
from pathlib import Path
from typing import Any

from tests.conformance.configurations import Configuration
from tests.conformance.observed_facts import Facts

RECORDED = Path(__file__).with_name("recorded.json")


def version() -> object:
    """Return the version of the recorded engine."""
    return _read()["version"]


def recorded_facts(configuration: Configuration) -> dict[str, Facts]:
    """Return the recorded facts of one configuration."""
    cases: dict[str, Facts] = _read()["cases"]
    return {
        name: facts for name, facts in cases.items() if name.startswith(f"{configuration.name}/")
    }


def record(configuration: Configuration, engine_version: str, observed: dict[str, Facts]) -> None:
    """Replace the recorded facts of a configuration, one case a line."""
    old = _read()["cases"] if RECORDED.exists() else {}
    others = {
        name: facts for name, facts in old.items() if not name.startswith(f"{configuration.name}/")
    }
    lines = (
        f"{json.dumps(name)}: {json.dumps(facts, sort_keys=True)}"
        for name, facts in sorted({**others, **observed}.items())
    )
    body = ",\n".join(lines)
    text = f'{{"version": {json.dumps(engine_version)}, "cases": {{\n{body}\n}}}}\n'
    RECORDED.write_text(text, encoding="utf-8")


def _read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content
