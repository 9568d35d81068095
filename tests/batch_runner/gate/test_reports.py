"""Reports of the Jobs of gates: the largest one fits, and what a pod may forge is refused."""

import json
from decimal import Decimal
from typing import Any

import pytest

from tessera.api.quality_gate import MAX_STRATA, AnswerShares, StratumVerdict
from tessera.batch_runner.gate.job import wire_report
from tessera.batch_runner.progress import MAX_REPORT_BYTES, encode_report
from tessera.domain.observed.gate_reports import gate_report

SHARES = AnswerShares(
    truncated=Decimal("0.1234"),
    empty=Decimal("0.1234"),
    refused=Decimal("0.1234"),
    mean_tokens=Decimal("12345.67"),
    ttft_p95_seconds=Decimal("123.4567"),
    itl_p95_seconds=Decimal("0.12345"),
)


def a_row(name: str) -> StratumVerdict:
    loss = Decimal("-12.345678")
    return StratumVerdict(
        name=name,
        prompts=99_999,
        baseline=Decimal("0.123456"),
        candidate=Decimal("0.123457"),
        loss_points=loss,
        largest_loss_points=loss,
        unseen_loss_points=Decimal("12.345678"),
        is_lost=True,
    )


def the_largest_report() -> dict[str, Any]:
    names = [f"{'a' * 38}{number:02}" for number in range(MAX_STRATA)]
    return wire_report(
        {
            "phase": "gate",
            "state": "judged",
            "version": "c" * 64,
            "baseline": "b" * 64,
            "suite": "a" * 64,
            "scorer": f"v1-{'d' * 12}",
            "verdict": "Failed",
            "prompts": dict.fromkeys(names, 99_999),
            "answered": 200_000,
            "strata": [a_row(name) for name in ("total", "small", *names)],
            "missingPrompts": 1_000_000,
            "answers": SHARES,
            "baselineAnswers": SHARES,
            "message": "ä\x1b" * 4000,
        }
    )


def test_the_largest_report_fits_into_a_termination_message_and_is_read_again() -> None:
    content = encode_report(the_largest_report())
    assert len(content) <= MAX_REPORT_BYTES
    report = gate_report(content.decode())
    assert report is not None
    assert report.strata[0] == a_row("total")
    assert (report.answers, len(report.strata), len(report.prompts)) == (SHARES, 18, 16)
    assert "\x1b" not in report.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", "passed"),
        ("verdict", "Great"),
        ("version", "c" * 200),
        ("prompts", {"Sums": 1}),
        ("prompts", {f"s{number}": 1 for number in range(17)}),
        ("strata", [["total", 1, 2, 0, 0, None, 0, False]]),
        ("strata", [["total", 1, 1, 0, 1e999, None, 0, False]]),
        ("strata", [["total"]]),
        ("strata", [{"name": "total", "baseline": "1e999999999"}]),
        ("answers", [0, 0, 0, -1, None, None]),
        ("missingPrompts", 10**30),
        ("message", "x" * 5000),
    ],
)
def test_a_forged_report_is_none(field: str, value: Any) -> None:
    assert gate_report(json.dumps({**the_largest_report(), field: value})) is None


@pytest.mark.parametrize("text", ["", "Traceback", "[" * 4096, "{}", '{"phase": "fetch"}'])
def test_another_text_is_none(text: str) -> None:
    assert gate_report(text) is None
