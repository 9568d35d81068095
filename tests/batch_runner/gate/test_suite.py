"""Suites of prompts: their bounds, and what broken ones are refused with."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tessera.batch_runner.gate import suite as suites
from tessera.batch_runner.gate.suite import SuiteError, parse_suite, read_suite


def a_row(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": fields.pop("say", "What is 2 + 3?")}]
    return {"messages": messages, "scorer": "number", "expected": 5} | fields


def lines(*rows: Any) -> bytes:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in rows).encode()


def faults_of(*rows: Any) -> dict[int, str]:
    with pytest.raises(SuiteError) as caught:
        parse_suite(lines(*rows))
    return dict(caught.value.faults)


def test_a_suite_has_a_digest_and_its_prompts_by_stratum(tmp_path: Path) -> None:
    content = lines(a_row(stratum="sums"), "", a_row(say="Hi", id="hi"), a_row(say="Ho"))
    (tmp_path / "suite.jsonl").write_bytes(content)
    suite = read_suite(tmp_path / "suite.jsonl")
    assert suite.digest == hashlib.sha256(content).hexdigest()
    assert suite.counts == {"all": 2, "sums": 1}
    assert [prompt.name for prompt in suite.prompts] == ["line-1", "hi", "line-4"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("{", "not JSON"),
        ("[1]", "one object a line"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        (a_row(scorer="guess"), "scorer: "),
        (a_row(scorrer="exact"), "scorrer: "),
        (a_row(expected="five"), "finite number"),
        (a_row(messages=[]), "messages: "),
        (a_row(maxTokens=0), "maxTokens: "),
        (a_row(weight=-1), "weight: "),
        (a_row(stratum="Sums!"), "stratum: "),
        (a_row(stratum="total"), "another"),
        (a_row(scorer="ranking", expected=[0]), "query and documents"),
        (a_row(query="x"), "neither query"),
        (a_row(scorer="toolCall", expected={"name": "f"}), "needs tools"),
        (a_row(labelled={"better": "a", "worse": "b"}), "only rows of scorer judge"),
        (
            a_row(
                scorer="judge", expected="is kind", labelled={"better": "a" * 9000, "worse": "b"}
            ),
            "labelled.better: String should have at most 8192 characters",
        ),
        (a_row(group="g" * 129), "group: "),
        (a_row(say="x" * 600_000), "512 KiB"),
    ],
)
def test_a_broken_line_is_named_by_its_number_and_says_what_to_do(row: Any, part: str) -> None:
    faults = faults_of(a_row(say="Hi"), row)
    assert list(faults) == [2]
    assert part in faults[2]


def test_all_broken_lines_are_counted_and_the_first_are_shown() -> None:
    with pytest.raises(SuiteError, match=r"7 broken lines: line 1: .*; and 2 lines more"):
        parse_suite(lines(*("{" for _ in range(7))))


def test_rows_that_repeat_or_contradict_another_are_refused() -> None:
    first = a_row(id="a")
    assert "contradicts that of line 1" in faults_of(first, a_row(id="b", expected=6))[2]
    assert "repeats line 1" in faults_of(first, a_row(id="b"))[2]
    assert "id: a is that of line 1" in faults_of(first, a_row(id="a", say="Hi"))[2]
    assert "id: line-1 is that of" in faults_of(first | {"id": ""}, a_row(id="line-1", say="Hi"))[2]
    other = a_row(id="b", scorer="contains", expected="5")
    assert len(parse_suite(lines(first, other)).prompts) == 2


def test_suites_that_cannot_judge_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = {"query": "q", "documents": ["a", "b"], "scorer": "ranking", "expected": [0]}
    judged = a_row(scorer="judge", expected="is polite")
    many = [a_row(say=str(number), stratum=f"s-{number}") for number in range(17)]
    for rows, part in (
        ((), "has no prompts"),
        ((a_row(), ranked), "a suite for each kind"),
        ((judged,), "0 labelled rows"),
        (many, "17 strata"),
    ):
        with pytest.raises(SuiteError, match=part):
            parse_suite(lines(*rows))
    monkeypatch.setattr(suites, "MAX_ROWS", 2)
    with pytest.raises(SuiteError, match="more than 2 lines"):
        parse_suite(lines(*many))


def test_a_suite_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="does not exist"):
        read_suite(tmp_path / "none")
    with pytest.raises(SuiteError, match="no regular file"):
        read_suite(Path("/dev/zero"))
