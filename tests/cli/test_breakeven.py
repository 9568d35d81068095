"""`tessera breakeven`: its options, its answers, its page, and what was measured."""

import csv
import io
import json
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from docs_tests.blocks import Command, File
from docs_tests.pages import page_of, read_page_steps
from tessera.cli.breakeven.arguments import BREAKEVEN
from tessera.cli.breakeven.command import build_request, run
from tessera.cli.breakeven.inputs import MeasuredMonth
from tessera.cli.breakeven.measured import calendar_months, month_of_usage
from tessera.cli.breakeven.report import output as as_form
from tessera.cli.breakeven.request import break_even_request
from tessera.cli.errors import CommandError
from tessera.cli.options import COST_FORMATS
from tessera.domain.economics.api_prices import TokenUse

AT = datetime(2026, 11, 26, tzinfo=UTC)
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
H100 = "NVIDIA-H100-80GB-HBM3"
PLAIN = ("--hourly", "3.50", "--api-price", "0.90")
ENTRY = {"name": "small", "from": "2026-11-01", "inputPerMillion": "1", "outputPerMillion": "2"}


def text(*words: str, output: str = "table") -> str:
    return as_form(build_request(BREAKEVEN.parse(words), AT), output).text


def answer(*words: str) -> Any:
    return json.loads(text(*words, output="json"))


def write_prices(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "prices.json"
    path.write_text(json.dumps({"prices": entries}), encoding="utf-8")
    return str(path)


def test_the_page_shows_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = 0
    for step in read_page_steps(page_of("break-even")):
        if isinstance(step, File):
            (tmp_path / step.name).write_text(step.text, encoding="utf-8")
        elif isinstance(step, Command):
            program, name, *words = shlex.split(step.text)
            assert (program, name) == ("tessera", "breakeven")
            assert text(*words).strip() == (step.output or "").strip()
            tried += 1
    assert tried == 3


def test_the_same_question_has_the_same_answer_in_every_format() -> None:
    words = (*PLAIN, "--tokens-per-second", "2000", "--requests-per-day", "1e6", "--peak", "2")
    for output in COST_FORMATS:
        assert text(*words, output=output) == text(*words, output=output)


def test_json_has_the_break_even_the_demand_and_the_curve() -> None:
    body = answer(*PLAIN, "--tokens", "100e9")
    assert body["breakEven"]["tokensPerMonth"] == pytest.approx(2.8e9)
    assert body["breakEven"]["tokensPerSecond"] == pytest.approx(1080.2469)
    assert body["breakEven"]["utilization"] is None
    assert (body["demand"]["api"], body["demand"]["own"]) == ("90000.000000000", "2520.000000000")
    assert body["replica"]["hourly"] == "3.500000000"
    assert len(body["curve"]) == 100
    assert body["outlook"] == []


def test_csv_is_the_demand_curve_to_twice_the_break_even() -> None:
    rows = list(csv.DictReader(io.StringIO(text(*PLAIN, output="csv"))))
    assert len(rows) == 100
    assert rows[49]["api"] == rows[49]["own"] == "2520.000000000"
    assert float(rows[99]["api"]) == 5040
    assert float(rows[99]["requestsPerDay"]) == pytest.approx(2 * 64_367.8161)


def test_the_picture_marks_the_break_even(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    run(BREAKEVEN.parse([*PLAIN, "--svg", str(path)]))
    picture = path.read_text(encoding="utf-8")
    for label in ("break-even: 64,368 requests/day", "API", "own GPUs", "own GPUs and API"):
        assert f">{label}</text>" in picture
    assert picture.count("<polyline") == 3


def test_a_model_gives_price_and_speed_of_its_cheapest_replica_at_the_precision_of_its_files() -> (
    None
):
    replica = answer(LLAMA, "--gpu", H100, "--api-price", "1")["replica"]
    assert replica["name"].endswith(f"{H100} in bf16")
    assert replica["isPredicted"]
    measured = answer(LLAMA, "--gpu", H100, "--api-price", "1", "--tokens-per-second", "1000")
    assert (measured["replica"]["outputRate"], measured["replica"]["isPredicted"]) == (1000, False)
    assert measured["replica"]["hourly"] == replica["hourly"]
    quantized = answer(LLAMA, "--gpu", H100, "--api-price", "1", "--precision", "awq-int4")
    assert quantized["replica"]["name"].endswith("int4")


def test_an_own_price_needs_no_assumed_one() -> None:
    warning = "the price of GPUs is assumed"
    assert warning in text(LLAMA, "--gpu", H100, "--api-price", "1")
    assert warning not in text(LLAMA, "--gpu", H100, "--api-price", "1", "--hourly", "3")
    unpriced = answer(LLAMA, "--gpu", "NVIDIA-A30", "--api-price", "1", "--hourly", "1")
    assert "NVIDIA-A30" in unpriced["replica"]["name"]


def test_an_old_price_is_warned_of() -> None:
    words = ("--hourly", "3.50", "--api", "gpt-4o-mini")
    assert "the price of gpt-4o-mini is 183 days old, more than 180" in text(*words)
    request = build_request(BREAKEVEN.parse(words), AT - timedelta(days=3))
    assert request.warnings == ()


def test_what_a_month_costs_besides_is_added_up() -> None:
    words = ("--ops", "500", "--engineer-hours", "10", "--engineer-rate", "90.5")
    body = answer(*PLAIN, *words, "--sla-penalty", "95")
    assert body["comparison"]["own"]["monthly"] == "1500.000000000"
    assert body["breakEven"]["tokensPerMonth"] == pytest.approx((2520 + 1500) / 0.9e-6)


def test_falling_prices_name_the_month_in_which_own_gpus_stop_paying() -> None:
    words = (*PLAIN, "--tokens", "5.6e9", "--months", "8")
    result = text(*words, "--price-decline", "0.8/yr")
    assert "The API costs less from month 7 on; together own GPUs" in result
    assert answer(*words, "--price-decline", ".8")["unprofitableFrom"] == 7
    assert "Own GPUs cost less in all 8 months" in text(*words, "--price-decline", "0.1/yr")


@pytest.mark.parametrize(
    "words",
    [
        "--hourly 1e-6 --api-price 1e9 --tokens 1e15 --peak 24 --peak-hours 1",
        "--hourly 1e9 --api-price 1e-6 --tokens 1 --input-tokens 100000000",
        "--hourly 1 --api-price 1e-6 --api-input-price 0 --input-tokens 100000000",
        "--hourly 1 --api-price 1e9 --tokens-per-second 1e-3 --ops 1e9",
    ],
)
def test_the_extremes_of_the_options_have_an_answer(words: str, tmp_path: Path) -> None:
    question = (*words.split(), "--output-tokens", "1")
    for output in COST_FORMATS:
        assert text(*question, output=output)
    run(BREAKEVEN.parse([*question, "--svg", str(tmp_path / "picture.svg")]))


def test_a_volume_that_never_pays_says_how_far_it_is() -> None:
    result = text("--hourly", "3.50", "--api-price", "0.10", "--tokens-per-second", "1000")
    assert "Break-even: never" in result
    assert "1.7 times its full load" in result


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no price of an API, or two: write either --api"),
        ((*PLAIN, "--api", "gpt-4o"), "no price of an API, or two"),
        (("--api-price", "1"), "no price of own GPUs: name a model to size"),
        (("--hourly", "1", "--api", "gpt-9"), "there is no price of gpt-9; choose of claude-3.5"),
        (("--hourly", "1", "--api", "gpt-4", "--api-input-price", "1"), "belongs to --api-price"),
        ((*PLAIN, "--api-cached-price", "1"), "--api-cached-price 1: write a number from 0 to 0.9"),
        (("--hourly", "0", "--api-price", "1"), "--hourly 0: write a number from 1e-06"),
        (("--hourly", "nan", "--api-price", "1"), "--hourly nan: write a number"),
        (("--hourly", "1", "--api-price", "inf"), "--api-price inf: write a number"),
        ((*PLAIN, "--tokens", "1", "--requests-per-day", "1"), "write only one of them"),
        ((*PLAIN, "--tokens", "0"), "--tokens 0: write a number from 1"),
        (
            (*PLAIN, "--cached-tokens", "1201"),
            "--cached-tokens 1201: write a number from 0 to 1200",
        ),
        ((*PLAIN, "--output-tokens", "0"), "--output-tokens 0: write a number from 1"),
        ((*PLAIN, "--engineer-hours", "1"), "--engineer-hours and --engineer-rate: write both"),
        ((*PLAIN, "--peak", "7"), "--peak 7: write a number from 1 to 6"),
        ((*PLAIN, "--peak-hours", "24"), "--peak-hours 24: write a number from 0.25 to 23.75"),
        ((*PLAIN, "--price-decline", "0.8"), "--price-decline is about a demand"),
        ((*PLAIN, "--tokens", "9", "--price-decline", "1"), "--price-decline 1: write the share"),
        ((*PLAIN, "--tokens", "9", "--price-decline", "80%"), "--price-decline 80%: write the"),
        ((*PLAIN, "--months", "0"), "--months 0: write a number from 1 to 120"),
        ((*PLAIN, "--gpu", H100), "--gpu is for sizing a model: name one"),
        (("llama", "--api-price", "1"), "MODEL llama is none of the"),
        ((LLAMA, "--api-price", "1", "--gpu", "H9"), "--gpu H9 is none of the"),
        ((LLAMA, "--api-price", "1", "--gpu", "NVIDIA-A30"), "no price of NVIDIA-A30: write what"),
        ((LLAMA, "--api-price", "1", "--slo", "itl=1ms"), "fits on none of these GPUs"),
        (
            (LLAMA, "--api-price", "1", "--output-tokens", "80000"),
            "has no room for prompts of 1200",
        ),
        ((*PLAIN, "--tenant", "a", "--prometheus", "http://127.0.0.1:9"), "have no tenants"),
    ],
)
def test_a_bad_option_is_a_sentence_with_its_fix(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(CommandError) as error:
        text(*words)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([ENTRY, {**ENTRY, "outputPerMillion": "3"}], "are different prices of small from"),
        ([{**ENTRY, "from": None}], "prices[0].from: Input should be a valid date"),
        ([{**ENTRY, "from": "2026-12-01"}], "there is no price of small before 2026-12-01"),
        ([], "there is no price of small; choose of none"),
    ],
)
def test_contradictory_and_undated_prices_are_refused(
    tmp_path: Path, entries: list[dict[str, Any]], problem: str
) -> None:
    path = write_prices(tmp_path, *entries)
    with pytest.raises(CommandError) as error:
        text("--hourly", "1", "--api", "small", "--prices", path)
    assert problem in str(error.value)
    assert path in str(error.value)


def test_two_currencies_are_not_compared(tmp_path: Path) -> None:
    path = write_prices(tmp_path, {**ENTRY, "currency": "EUR"})
    words = ("--api", "small", "--prices", path)
    with pytest.raises(CommandError, match="the API is paid in EUR and GPUs in USD"):
        text(LLAMA, "--gpu", H100, *words)
    assert answer(LLAMA, "--gpu", H100, "--hourly", "3", *words)["currency"] == "EUR"


def test_a_file_of_gpu_prices_is_named_by_its_own_option(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(CommandError, match=f"--gpu-prices {path}: it has no list prices"):
        text(LLAMA, "--api-price", "1", "--gpu-prices", str(path))


def test_a_price_file_that_can_not_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file or directory; check the path"):
        text("--hourly", "1", "--api", "small", "--prices", str(tmp_path / "none.json"))


def usage_answer(oldest: str | None = "2026-09-01T00:00:00+00:00", *rows: dict[str, Any]) -> Any:
    counts = dict.fromkeys(("failed", "aborted", "estimated", "reasoningTokens"), 0)
    return {"oldest": oldest, "truncated": False, "rows": [{**counts, **row} for row in rows]}


CHAT = {
    "service": "team-a/chat",
    "requests": 2_000,
    "inputTokens": 2_400_000,
    "cachedTokens": 1_600_000,
    "outputTokens": 500_000,
}


def test_usage_records_give_the_demand_and_the_mean_request() -> None:
    since = AT - timedelta(days=20)
    other = {**CHAT, "service": "team-b/code", "requests": 1}
    month = month_of_usage(usage_answer("2026-09-01T00:00Z", CHAT, other), "team-a/chat", since, AT)
    request = break_even_request(BREAKEVEN.parse(PLAIN), AT.date(), [month])
    assert request.comparison.request == TokenUse(
        input_tokens=1200, cached_tokens=800, output_tokens=250
    )
    assert request.requests_per_day == 100
    table = as_form(request, "table").text
    assert (
        "2026-11-06     20.0     2,000     2,400,000      1,600,000        500,000  2.61" in table
    )
    both = month_of_usage(usage_answer("2026-09-01T00:00Z", CHAT, other), None, since, AT)
    assert both.requests == 2_001


@pytest.mark.parametrize(
    ("oldest", "problem"),
    [
        ("2026-11-20T00:00:00+00:00", "no records of before 2026-11-20: write --since"),
        (None, "no records of any time"),
    ],
)
def test_a_month_before_the_oldest_record_is_refused(oldest: str | None, problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        month_of_usage(usage_answer(oldest, CHAT), None, AT - timedelta(days=20), AT)


@pytest.mark.parametrize("rows", [(), (CHAT,), ({**CHAT, "outputTokens": 0},)])
def test_a_month_without_data_is_not_taken_for_one_without_use(
    rows: tuple[dict[str, Any], ...],
) -> None:
    answered = usage_answer("2026-09-01T00:00Z", *rows)
    service = "team-a/other" if rows == (CHAT,) else None
    with pytest.raises(CommandError, match=r"no output tokens of .* from 2026-11-06 to 2026-11-26"):
        month_of_usage(answered, service, AT - timedelta(days=20), AT)


def test_months_of_different_length_are_weighed_by_their_days() -> None:
    use = TokenUse(input_tokens=300_000, output_tokens=100_000)
    months = [
        MeasuredMonth(start=AT.date(), days=days, requests=requests, use=use.times(requests))
        for days, requests in ((10, 1_000), (30, 1_000))
    ]
    request = break_even_request(BREAKEVEN.parse(PLAIN), AT.date(), months)
    assert request.requests_per_day == 50


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        ("2026-09-29T12:00Z", "2026-11-26T00:00Z", [1.5, 31, 25]),
        ("2026-09-30T12:00Z", "2026-11-26T00:00Z", [31.5, 25]),
        ("2026-09-01T00:00Z", "2026-10-01T00:30Z", [30 + 1 / 48]),
        ("2026-12-15T00:00Z", "2027-01-05T00:00Z", [17, 4]),
        ("2026-11-25T23:00Z", "2026-11-26T00:00Z", [1 / 24]),
    ],
)
def test_a_span_is_split_at_the_first_of_each_month(
    since: str, until: str, days: list[float]
) -> None:
    spans = list(calendar_months(datetime.fromisoformat(since), datetime.fromisoformat(until)))
    assert [(end - start) / timedelta(days=1) for start, end in spans] == pytest.approx(days)


def test_a_model_that_generates_nothing_has_no_price_of_answers() -> None:
    with pytest.raises(CommandError, match="BAAI/bge-m3 generates no tokens"):
        text("BAAI/bge-m3", "--gpu", H100, "--api-price", "1")
