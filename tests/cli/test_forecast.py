"""`tessera forecast`: its options, its files, and what it reads of a gateway."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.breakeven.inputs import MeasuredMonth
from tessera.cli.errors import CommandError
from tessera.cli.forecast.arguments import FORECAST
from tessera.cli.forecast.command import run
from tessera.cli.forecast.records import usage_of_records
from tessera.cli.forecast.sums import usage_of_months
from tessera.domain.economics.api_prices import TokenUse
from tessera.domain.economics.measurement import LoggedRequest, measure
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.gateway.store.schema import USAGE_RECORDS
from tessera.gateway.usage.logs import access_line
from tests.domain.economics.recorded_day import EXAMPLE, example_text
from tests.gateway.store.builders import a_record

ROOT = Path(__file__).parents[2]
DAY = ROOT / "examples" / "forecast" / "day.csv.gz"
SERVICE = "team-a/chat"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
PLAIN = ("--requests", "1e6/month", "--prompt-tokens", "400", "--answer-tokens", "200")
HEAD = "started_at_ns,total_ns,input_tokens,output_tokens"


def text(*words: str) -> str:
    return run(FORECAST.parse(words)).text


def answer(*words: str) -> Any:
    return json.loads(text(*words, "--json"))


def a_forecast(folder: Path, *words: str) -> str:
    path = str(folder / "forecast.json")
    text(*(words or PLAIN), "--save", path)
    return path


def a_file(folder: Path, content: str) -> str:
    path = folder / "records"
    path.write_text(content, encoding="utf-8")
    return str(path)


def usage_records(records: Sequence[LoggedRequest], **changes: Any) -> list[UsageRecord]:
    start_ns = 1_795_132_800 * 10**9
    return [
        a_record(
            **{
                "started_at_ns": start_ns + round(record.started_at * 1000) * 10**6,
                "total_ns": round((record.ended_at - record.started_at) * 1000) * 10**6,
                "key": record.sender[1],
                "input_tokens": record.input_tokens,
                "output_tokens": record.output_tokens,
                "reasoning_tokens": 0,
            }
            | changes
        )
        for record in records
    ]


def test_the_example_is_drawn_by_the_generator() -> None:
    assert gzip.decompress(DAY.read_bytes()).decode() == example_text()


def test_json_has_the_range_of_tokens_hours_and_money() -> None:
    body = answer(
        LLAMA,
        *("--requests", "50:80:200/s", "--prompt-tokens", "300", "--answer-tokens", "100:200:400"),
        *("--api-price", "0.60", "--api-input-price", "0.15", "--utilization", "1"),
    )
    tokens, hours = body["tokens"], body["ownGpus"]["gpuHours"]
    assert tokens["p10"] < tokens["p50"] < tokens["p90"]
    assert hours["p10"] < hours["p50"] < hours["p90"]
    assert body["likelyTokens"] == 80 * 2_592_000 * 500
    assert body["api"]["perRequest"] == pytest.approx((300 * 0.15 + 200 * 0.60) / 1e6)
    inputs, outputs = (
        answer(*_few(kind))["api"]["p50"] / answer(*_few(kind))[name]["p50"]
        for kind, name in (("input", "inputTokens"), ("output", "outputTokens"))
    )
    assert (inputs, outputs) == (pytest.approx(3e-6), pytest.approx(4e-6))


def _few(kind: str) -> tuple[str, ...]:
    """Return a forecast of which only one kind of token costs money."""
    if kind == "output":
        return (*PLAIN, "--api-price", "4", "--api-input-price", "0")
    words = ("--requests", "1e6/month", "--prompt-tokens", "1e6", "--answer-tokens", "1")
    return (*words, "--api-price", "3", "--api-input-price", "3")


def test_10_000_requests_a_minute_for_500_000_dollars_cost_a_ninth_of_a_cent_each() -> None:
    """F30."""
    # 500,000 dollars for 432 million answers of 100 tokens.
    price = repr(500_000 / 432 / 100)
    body = answer(
        *("--requests", "10000/min", "--prompt-tokens", "0", "--answer-tokens", "100"),
        *("--api-price", price, "--api-input-price", "0"),
    )
    assert body["factors"]["requests"]["likely"] == 432e6
    assert body["api"]["p50"] == pytest.approx(500_000)
    assert round(body["api"]["perRequest"], 6) == 0.001157
    assert "requests 167 per second" in text(
        *("--requests", "10000/min", "--prompt-tokens", "0", "--answer-tokens", "100")
    )


def test_own_gpus_run_at_least_one_replica_all_month() -> None:
    body = answer(LLAMA, *PLAIN[:1], "1/day", *PLAIN[2:], "--gpu", "NVIDIA-A100-SXM4-80GB")
    hours = body["ownGpus"]["gpuHours"]

    assert hours["p10"] == hours["p90"]
    # On a slice of an A100.
    assert 0 < hours["p50"] < 720


def test_a_longer_prompt_needs_more_gpu_hours_at_the_same_answers() -> None:
    def hours(prompt: str) -> float:
        words = ("--requests", "100/s", "--prompt-tokens", prompt, "--answer-tokens", "200")
        gpu = ("--gpu", "NVIDIA-H100-80GB-HBM3")
        return float(answer(LLAMA, *words, *gpu)["ownGpus"]["gpuHours"]["p90"])

    assert hours("500") < hours("500:500:4000") < hours("4000")


def test_a_saved_forecast_is_read_again(tmp_path: Path) -> None:
    words = ("--service", SERVICE, *PLAIN, "--hidden-tokens", "0:100:900", "--turns", "1:2:9")
    path = a_forecast(tmp_path, *words)
    rule = text("--compare", path, "--alert-rule")

    assert rule == text(*words, "--alert-rule")
    assert rule.replace(SERVICE, "team-b/chat") != rule
    other = text("--compare", path, "--alert-rule", "--service", "team-b/chat")
    assert 'service=\\"team-b/chat\\"' in other


def test_the_access_log_and_the_table_of_a_gateway_say_the_same(tmp_path: Path) -> None:
    records = EXAMPLE.records(1)
    # What a target of a route used that did not answer is of no request.
    call = replace(records[-1], requests=0)
    rows = usage_records(records)
    rows += usage_records([call], requests=0, model_route="team-a/assistant", target="small")
    # A dump of the table has the names of its columns, and one differs from that of the field.
    fields = [column.key for column in USAGE_RECORDS.columns]
    table = [",".join(column.name for column in USAGE_RECORDS.columns)] + [
        ",".join("" if (value := getattr(row, name)) is None else str(value) for name in fields)
        for row in rows
    ]
    refused = access_line(a_record(phase=Phase.REFUSED, input_tokens=10**6))
    audit = b'{"log":"audit","event":"KeyCreated"}\n'
    log = b"".join((audit, refused, *map(access_line, rows)))

    of_table, of_log = (
        usage_of_records(
            FORECAST.parse(["--records", a_file(tmp_path, content), "--days", "1"]), SERVICE
        )
        for content in ("\n".join(table), log.decode())
    )
    assert of_table == measure([*records, call], 1.0)
    assert of_log == of_table


def test_records_of_several_services_need_the_name_of_one(tmp_path: Path) -> None:
    records = EXAMPLE.records(1)
    rows = [*usage_records(records), *usage_records(records[:150], service="team-a/other")]
    path = a_file(tmp_path, b"".join(map(access_line, rows)).decode())
    arguments = FORECAST.parse(["--records", path])

    usage = usage_of_records(arguments, "team-a/other")
    assert usage.requests > 150 * 30
    message = "no records of one service alone: write --service with one of team-a/chat, team-a/oth"
    with pytest.raises(CommandError, match=message):
        usage_of_records(arguments, None)
    with pytest.raises(CommandError, match="no records of team-b/chat: write --service with one"):
        usage_of_records(arguments, "team-b/chat")


def test_sums_of_months_are_means_of_a_request() -> None:
    month = MeasuredMonth(
        start=date(2026, 10, 17),
        days=15,
        requests=1e6,
        use=TokenUse(input_tokens=1600e6, output_tokens=800e6),
    )
    usage = usage_of_months([month, replace(month, requests=3e6)], SERVICE)

    means = (usage.requests, usage.input_tokens, usage.output_tokens)
    assert means == pytest.approx((4e6, 800, 400))
    assert (usage.retries, usage.conversations) == (None, None)
    with pytest.raises(CommandError, match=f"no request of {SERVICE} was counted"):
        usage_of_months([replace(month, requests=0)], SERVICE)


def test_where_records_do_not_separate_two_causes_the_command_says_so(tmp_path: Path) -> None:
    shared = replace(EXAMPLE, senders=1, hidden_tokens=0, most_turns=9)
    path = a_file(tmp_path, b"".join(map(access_line, usage_records(shared.records(1)))).decode())
    words = ("--requests", "2000/day", "--prompt-tokens", "120", "--answer-tokens", "400")
    forecast = a_forecast(tmp_path, *words, "--turns", "3.7")
    compared = ("--compare", forecast, "--records", path)

    assert answer(*compared)["mainCause"] == ["promptTokens", "turns"]
    assert (
        "Cannot tell which of them: the records do not show what in the prompts grew; users with "
        "keys or tokens of their own show their conversations." in text(*compared)
    )


def test_a_forecast_that_was_right_has_no_main_cause(tmp_path: Path) -> None:
    forecast = a_forecast(
        tmp_path,
        *("--requests", "2000/day", "--prompt-tokens", "120", "--answer-tokens", "400"),
        *("--turns", "3.67", "--hidden-tokens", "1200", "--retries", "0.02"),
    )
    compared = ("--compare", forecast, "--records", str(DAY))

    assert "The forecast was right: the tokens are within 5 % of it." in text(*compared)
    assert answer(*compared)["mainCause"] == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), r"no --requests: write what you expect, such as tessera forecast --requests 50:80"),
        (PLAIN[:2], "no --prompt-tokens"),
        (("--requests", "80", *PLAIN[2:]), "--requests 80: write .* with /s, /min, /h, /day, /mon"),
        (("--requests", "80/year", *PLAIN[2:]), "--requests 80/year: write a number or low:likely"),
        ((*PLAIN, "--turns", "3/min"), "--turns 3/min: write a number or low:likely:high, such as"),
        ((*PLAIN, "--turns", "2:4"), "--turns 2:4: write a number or low:likely:high"),
        ((*PLAIN, "--turns", "5:3:2"), "--turns 5:3:2: write ascending numbers low:likely:high"),
        ((*PLAIN, "--turns", "-1"), "--turns -1: write a number or low:likely:high"),
        ((*PLAIN, "--turns", "0"), "turns 0:0:0 has to be at least 1"),
        (("--requests", "0/day", *PLAIN[2:]), "requests 0:0:0 has to be above 0"),
        ((*PLAIN, "--answers", "1e9"), None),
        ((*PLAIN, "--answers", "1e99"), "--answers 1e99: write ascending numbers"),
        ((*PLAIN, "--service", 'a"}/b'), "service: String should match pattern"),
        ((*PLAIN, "--api", "x", "--api-price", "1"), "--api and --api-price: write only one of"),
        ((*PLAIN, "--api", "nothing"), "--api nothing: in the shipped list there is no price of"),
        ((*PLAIN, "--save", "/nowhere/f.json"), "--save /nowhere/f.json cannot be written"),
        ((*PLAIN, "--alert-rule"), "no service to watch: write --service NAMESPACE/NAME"),
        ((LLAMA, *PLAIN, "--utilization", "2"), "--utilization 2: write a number from 0.01 to 1"),
        (("no-such-model", *PLAIN), "no-such-model is none of the"),
        ((*PLAIN, "--compare", "f.json"), "--requests is of a new forecast, and --compare reads"),
        (("--compare", "/nowhere/f.json"), "--compare /nowhere/f.json: No such file"),
    ],
)
def test_wrong_options_say_what_to_do(words: tuple[str, ...], problem: str | None) -> None:
    if problem is None:
        assert text(*words)
        return
    with pytest.raises(CommandError, match=problem):
        text(*words)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Invalid JSON: EOF"),
        ("[]", "Input should be an object"),
        ("[" * 100_000, "Invalid JSON: recursion limit"),
        ('{"requests": 5}', "requests: Input should be an object"),
        ('{"requests": {"low": 1, "likely": 2}}', "requests.high: Field required"),
        ('{"requests": {"low": 3, "likely": 2, "high": 4}}', "requests: 3:2:4 is no low:likely:hi"),
        ('{"speed": 1}', "Field required"),
    ],
)
def test_a_file_that_is_no_forecast_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    path = a_file(tmp_path, content)

    with pytest.raises(CommandError, match=f"{problem}.*; write the file with tessera forecast"):
        text("--compare", path, "--records", "x")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no column input_tokens, output_tokens, started_at_ns, total_ns"),
        ("a,b\n1,2\n", "has no column input_tokens"),
        (f"{HEAD}\n1,2,3\n", "line 2: int.. argument must be a string"),
        (f"{HEAD}\n1,2,3,4\n1,2,x,4\n", "line 3: invalid literal for int"),
        (f"{HEAD}\n1,2,-3,4\n", "line 2: -3 is no count"),
        (f"{HEAD}\n1,2,{'9' * 30},4\n", "line 2: 9{30} is no count"),
        (f"{HEAD}\n1,2,{'9' * 5000},4\n", "line 2: Exceeds the limit"),
        (f'{HEAD}\n1,2,"{"9" * 200_000}",4\n', "field larger than field limit"),
        (f"{HEAD}\n1,2,3,4\n2,2,3,4\n", "covers less than an hour: write the days"),
        (f"{HEAD}\n", "has no records of one service alone"),
        ('{"log":"audit"}\n', "has no records of one service alone"),
        ('{"log":"access"}\n', "line 1: no 'phase'"),
        ('{"log":"access"\n', "line 1: Expecting"),
        ('{"log":"access", "x": ' + "[" * 100_000, "line 1: maximum recursion depth"),
        ('{}\n["log", {"log":"access"}]\n', "line 2: "),
    ],
)
def test_records_that_cannot_be_read_say_where(content: str, problem: str, tmp_path: Path) -> None:
    forecast, path = a_forecast(tmp_path), a_file(tmp_path, content)

    with pytest.raises(CommandError, match=f"^--records {path}.* ?{problem}"):
        text("--compare", forecast, "--records", path)


def test_bytes_that_are_no_records_say_so(tmp_path: Path) -> None:
    forecast = a_forecast(tmp_path)
    for name, content, problem in (
        ("records.gz", b"no gzip", "Not a gzipped file"),
        ("cut.gz", gzip.compress(b"x" * 9000)[:40], "Compressed file ended"),
        ("latin", b"\xff\xfe\n", "can't decode byte"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CommandError, match=problem):
            text("--compare", forecast, "--records", str(path))


def test_a_comparison_needs_one_source(tmp_path: Path) -> None:
    forecast = a_forecast(tmp_path)
    both = ("--records", "x", "--prometheus", "http://127.0.0.1:9")
    for words in ((), both):
        with pytest.raises(CommandError, match="write one of --records, --gateway and --promethe"):
            text("--compare", forecast, *words)
    with pytest.raises(CommandError, match="no service: write --service NAMESPACE/NAME"):
        text("--compare", forecast, "--prometheus", "http://127.0.0.1:9")


def test_days_are_those_of_the_records_unless_they_are_given(tmp_path: Path) -> None:
    hours = [f"{index * 3600 * 10**9},1,400,200" for index in range(49)]
    path = a_file(tmp_path, "\n".join((HEAD, *hours)))
    requests = {
        days: usage_of_records(FORECAST.parse(["--records", path, *days]), None).requests
        for days in ((), ("--days", "7"))
    }
    assert requests[()] == pytest.approx(49 * 15)
    assert requests["--days", "7"] == pytest.approx(49 * 30 / 7)
    with pytest.raises(CommandError, match="--days 0: write a number from"):
        usage_of_records(FORECAST.parse(["--records", path, "--days", "0"]), None)
