"""A benchmark takes its options from its parameters, and ends with its figures as JSON."""

import json

import pytest

from figures import benchmark


def measure(services: int = 50, only: str = "", save: bool = False) -> dict[str, object]:
    return {"services": services, "only": only, "save": save}


async def measure_later(rounds: int = 3) -> dict[str, object]:
    return {"rounds": rounds}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"services": 50, "only": "", "save": False}),
        (
            ["--services", "7", "--only", "cpu", "--save"],
            {"services": 7, "only": "cpu", "save": True},
        ),
    ],
)
def test_parameters_are_options(
    words: list[str],
    expected: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *words])
    benchmark(measure, only={"choices": ["cpu"]})
    assert capsys.readouterr().out == f"BENCH {json.dumps(expected)}\n"


def test_an_asynchronous_measurement_is_awaited_and_shown_in_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--rounds", "2"])
    benchmark(measure_later, 8)
    assert capsys.readouterr().out == '  rounds 2\nBENCH {"rounds": 2}\n'


def test_settings_of_an_option_are_those_of_argparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--only", "disk"])
    with pytest.raises(SystemExit):
        benchmark(measure, only={"choices": ["cpu"]})


def test_the_short_form_takes_its_own_defaults_and_options_beside_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--short", "--only", "cpu"])
    benchmark(measure, short={"services": 1, "save": True})
    expected = {"services": 1, "only": "cpu", "save": True}
    assert capsys.readouterr().out == f"BENCH {json.dumps(expected)}\n"


def test_without_a_short_form_its_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--short"])
    with pytest.raises(SystemExit):
        benchmark(measure)
