"""Words of engines, nodes and tenants go out by each way without what a terminal executes."""

import json
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest

import tessera
from tessera.adapters.logs import PlainFormatter
from tessera.api import (
    accelerator_pool,
    batch_inference,
    meta,
    mig,
    node_layout,
    service_status,
    variant_status,
)
from tessera.api.reasons import Accepted, StatusVerdict
from tessera.batch_runner.gate.job import wire_report
from tessera.cli.options import _MessageFormatter
from tessera.cli.output import Output
from tessera.cli.text import escape_controls, table
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.status.conditions import conditions
from tessera.resources.event import EventSeries, event_manifest
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW, a_service

CHARACTERS = (
    *("\x1b", "\r", "\x00", "\x07", "\x9b", "\x85", "\x7f"),  # of terminals
    *("\u2028", "\u2029"),  # separators of lines
    *("\u202a", "\u202b", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u200f", "\u061c"),
    *("\u200b", "\u2060", "\ufeff", "\u00ad", "\U000e0041", "\ud800"),  # not to be seen
)
HOSTILE = "engine said: \x1b[2J\x1b]0;x\x07 red\r\nforged line " + "|".join(CHARACTERS)


def condition(text: str) -> str:
    verdict = StatusVerdict(Accepted.PLANNER_ERROR, text)
    (written,) = conditions({"Accepted": verdict}, a_service(), NOW)
    return written.message


def event(text: str) -> str:
    note = EventNote(reason="Failed", action="Ready", message=text, is_warning=True)
    key = ObjectKey("inferenceservices", "team-a", "chat")
    series = EventSeries(
        kind=INFERENCE_SERVICES, key=key, uid="u", note=note, first=NOW, last=NOW, serial=1
    )
    return str(event_manifest(series, "operator").body["note"])


def a_record(text: str) -> logging.LogRecord:
    return logging.LogRecord("tessera", logging.ERROR, "", 1, "an engine: %s", (text,), None)


def log(text: str) -> str:
    return PlainFormatter().format(a_record(text))


def command_log(text: str) -> str:
    return _MessageFormatter("tessera: %(message)s").format(a_record(text))


def cells(text: str) -> str:
    lines = list(table(["NAME", "MESSAGE"], [["chat", text], [text, "x"]]))
    assert len(lines) == 3, "no cell begins a line"
    return "\n".join(lines)


_REPORT = {"phase": "gate", "state": "suiteInvalid", "version": "a" * 64}
WAYS: dict[str, Callable[[str], str]] = {
    "a condition": condition,
    "an event": event,
    "a log": log,
    "the log of a command": command_log,
    "a table": cells,
    "lines of a command": lambda text: escape_controls(Output.of_lines([text]).text),
    "JSON": lambda text: escape_controls(Output.of_json({"message": text}).text),
    "a suite": lambda text: wire_report({**_REPORT, "message": text})["message"],
    "CSV": lambda text: escape_controls(Output.of_csv(["a"], [{"a": text}]).text),
}


def assert_plain(text: str) -> None:
    """Nothing but line breaks and tabs is a control, a separator of lines, or not to be seen."""
    executed = {
        each
        for each in text
        if each not in "\n\t" and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    assert executed == set()


@pytest.mark.parametrize("way", WAYS)
def test_no_word_of_others_moves_a_cursor_or_turns_the_direction(way: str) -> None:
    text = WAYS[way](HOSTILE)
    assert "engine said" in text
    assert_plain(text)


@pytest.mark.parametrize("way", ["a condition", "an event", "a log", "a table", "a suite"])
def test_a_line_stays_one_whatever_others_say(way: str) -> None:
    assert "\nforged line" not in WAYS[way](HOSTILE)


def test_no_error_of_others_reads_as_a_record_of_its_own() -> None:
    record = a_record("x")
    try:
        raise ValueError("engine said\r\nERROR forged")
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *others = PlainFormatter().format(record).split("\n")
    assert first == "ERROR an engine: x"
    assert any("ERROR forged" in line for line in others)
    assert all(line.startswith("  ") for line in others)


def test_json_says_the_same_words() -> None:
    assert json.loads(Output.of_json([HOSTILE]).text) == [HOSTILE]


def texts_of_statuses() -> Iterator[tuple[str, pydantic.TypeAdapter[Any]]]:
    """Yield the fields of statuses that have words for people."""
    words = {"message", "problem", "termination_message", "previous_outcome"}
    for module in (
        *(accelerator_pool, batch_inference, meta, mig),
        *(node_layout, service_status, variant_status),
    ):
        for name, model in vars(module).items():
            if isinstance(model, type) and issubclass(model, meta.Wire):
                for field, info in model.model_fields.items():
                    if field in words:
                        annotation = info.rebuild_annotation()
                        yield f"{name}.{field}", pydantic.TypeAdapter(annotation)


@pytest.mark.parametrize("field", dict(texts_of_statuses()))
def test_no_status_has_a_character_that_a_terminal_executes(field: str) -> None:
    short = HOSTILE[:60] + "\u202e\x00"
    text = dict(texts_of_statuses())[field].validate_python(short)
    assert text.startswith("engine said")
    assert_plain(text)
    assert "\n" not in text


def test_only_a_log_keeps_the_lines_of_others() -> None:
    """Its further lines are indented; whatever else has words of others makes one line of them."""
    root = Path(tessera.__file__).parent
    users = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "plain_text" in path.read_text(encoding="utf-8")
    }
    assert users == {"api/text.py", "adapters/logs.py"}
