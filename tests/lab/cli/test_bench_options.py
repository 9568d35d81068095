"""Options, files, prompts and plots of `tessera bench`."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.cli.errors import CommandError
from tessera.cli.main import main
from tessera.cli.plots import Plot, PlotSeries, svg, thin_out, ticks
from tessera_lab.cli.bench.arguments import bench
from tessera_lab.cli.bench.plan import BenchPlan, parse_plan
from tessera_lab.cli.bench.prompts import (
    PromptGenerator,
    TokenRatio,
    draw_requests,
    parse_lengths,
    random_words,
    token_ratio,
)
from tessera_lab.cli.bench.trace import read_trace
from tests.bench_builders import a_job

URL = "http://127.0.0.1:9"
HEAD = "arrival_s,input_tokens,output_tokens\n"
MOONCAKE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0]}\n'


def bench_plan(*words: str) -> BenchPlan:
    return parse_plan(bench.parse(words), seed=1)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["127.0.0.1:8000"], "write a URL with its scheme"),
        (["ftp://host"], "write a URL with its scheme"),
        (["http://host:99999"], "write a URL with its scheme"),
        (["http://me:pw@host"], "never an argument"),
        ([URL, "--prompts", "0"], "write a number of at least 1"),
        ([URL, "--concurrency", "-1"], "write a number of at least 1"),
        ([URL, "--rate", "0"], "write a number above 0"),
        ([URL, "--rate", "nan"], "write a number above 0"),
        ([URL, "--timeout", "inf"], "write a number above 0"),
        ([URL, "--sweep", "1,x"], "numbers with commas"),
        ([URL, "--sweep", "0,1"], "from 1 to"),
        ([URL, "--input-tokens", "many"], "uniform:MIN:MAX"),
        ([URL, "--input-tokens", "uniform:9:3"], "uniform:MIN:MAX"),
        ([URL, "--output-tokens", "lognormal:0:3"], "lognormal:P50:P95"),
        ([URL, "--shared-prefix", "512"], "take fewer, or more --input-tokens"),
        ([URL, "--gpu", "NVIDIA-H100"], "NVIDIA-H100-PCIe"),
        ([URL, "--gpu", "NVIDIA-H100-80GB-HBM3/9g"], "3g.40gb"),
        ([URL, "--gpu", "NVIDIA-A100-SXM4-80GB", "--fp8"], "leave it out"),
        ([URL, "--price", "cheap"], "such as 3.50"),
        ([URL, "--price", "-1"], "such as 3.50"),
        ([URL, "--price", "NaN"], "such as 3.50"),
        ([URL, "--html", "/nowhere/report.html"], "cannot be written"),
        ([URL, "--trace", "/nowhere/trace.csv"], "No such file"),
    ],
)
def test_a_wrong_option_is_a_sentence_with_its_fix(words: list[str], fix: str) -> None:
    with pytest.raises(CommandError, match=r".") as error:
        bench_plan(*words)
    assert fix in str(error.value)


def test_two_loads_at_once_are_refused_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", URL, "--rate", "3", "--sweep", "1,2"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_without_options_a_hundred_prompts_are_sent_ten_at_once() -> None:
    (load,) = bench_plan(URL).loads
    assert (load.concurrency, len(load.requests)) == (10, 100)
    assert {job.output_tokens for job in load.requests} == {200}
    arguments = bench.parse([URL])
    assert (arguments.timeout, arguments.warmup) == (60.0, 10)


def test_the_peaks_of_a_slice_are_those_of_its_share() -> None:
    whole = bench_plan(URL, "--gpu", "NVIDIA-H100-80GB-HBM3").peaks
    part = bench_plan(URL, "--gpu", "NVIDIA-H100-80GB-HBM3/3g.40gb").peaks
    double = bench_plan(URL, "--gpu", "NVIDIA-H100-80GB-HBM3", "--fp8").peaks
    assert whole is not None
    assert part is not None
    assert double is not None
    assert (whole.flops, whole.bandwidth) == (989e12, 3350e9)
    assert part.bandwidth == whole.bandwidth / 2
    assert part.flops == pytest.approx(whole.flops * 60 / 132)
    assert double.flops == 1979e12


def test_the_price_is_that_of_all_gpus() -> None:
    price = bench_plan(URL, "--price", "3.50", "--gpus", "2", "--currency", "EUR").price
    assert price is not None
    assert str(price.per_hour) == "7.00 EUR"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: missing column"),
        ("a,b\n1,2\n", "line 1: missing column arrival_s, input_tokens, output_tokens"),
        (HEAD, "has no requests"),
        (f"{HEAD}0,10,5\n1,x,5\n", "line 3: not numbers"),
        (f"{HEAD}0,10\n", "line 2: not numbers"),
        (f"{HEAD}-1,10,5\n", "line 2: arrival -1"),
        (f"{HEAD}nan,10,5\n", "line 2: arrival nan"),
        (f"{HEAD}0,0,5\n", "has a prompt"),
        (f"{MOONCAKE}", "1 block of 512 cannot hold 600 tokens"),
        ('{"timestamp": 0}\n', "line 1: KeyError 'input_length'"),
        ('{"timestamp": 0\n', "line 1: JSONDecodeError"),
        ('{"timestamp": 1e999, "input_length": 5, "output_length": 5}\n', "arrival inf"),
    ],
)
def test_a_bad_trace_is_reported_with_its_line_and_the_expected_format(
    tmp_path: Path, text: str, problem: str
) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(CommandError) as error:
        read_trace(str(file), None, 1.0)
    assert problem in str(error.value)
    assert "arrival_s,input_tokens,output_tokens" in str(error.value)


def test_a_trace_that_is_no_text_is_reported(tmp_path: Path) -> None:
    for name, content in (("broken.gz", b"\x1f\x8bxx"), ("picture", b"\x89PNG\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CommandError, match="neither text nor complete gzip"):
            read_trace(str(tmp_path / name), None, 1.0)


def test_a_trace_begins_with_its_first_arrival_and_is_put_in_order(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(f"{HEAD}12,10,5\n10,20,0\n14,30,5\n")
    jobs = read_trace(str(file), 2, 2.0)
    assert [(job.arrival, job.input_tokens, job.output_tokens) for job in jobs] == [
        (0.0, 20, 1),
        (1.0, 10, 5),
    ]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_one() -> None:
    one_token = parse_lengths("--input-tokens", "1")
    jobs = draw_requests(3, 4000, one_token, one_token, 0, rate=5.0)
    arrivals = [job.arrival for job in jobs]
    gaps = [late - early for early, late in zip([0.0, *arrivals], arrivals, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(0.04, rel=0.1)


def test_lognormal_lengths_have_the_median_and_the_p95_that_were_asked_for() -> None:
    rng, distribution = random.Random(1), parse_lengths("-", "lognormal:400:1600")  # noqa: S311
    lengths = sorted(distribution.draw(rng) for _ in range(20_000))
    assert lengths[10_000] == pytest.approx(400, rel=0.05)
    assert lengths[19_000] == pytest.approx(1600, rel=0.05)


def test_longer_loads_of_a_sweep_begin_with_the_lengths_of_shorter_ones() -> None:
    few, many = bench_plan(URL, "--sweep", "1,64", "--input-tokens", "uniform:10:900").loads
    assert len(many.requests) == 512
    assert [job.input_tokens for job in many.requests[:100]] == [
        job.input_tokens for job in few.requests
    ]


@given(st.integers(0, 40), st.floats(0.5, 4), st.integers(100, 5000))
def test_two_probes_show_how_many_words_a_prompt_needs(
    overhead: int, per_word: float, wanted: int
) -> None:
    def tokens(count: int) -> int:
        return round(overhead + per_word * count)

    ratio = token_ratio((32, tokens(32)), (288, tokens(288)))
    assert tokens(ratio.word_count(wanted)) == pytest.approx(wanted, rel=0.03, abs=3)


def test_a_server_whose_tokens_do_not_grow_with_words_counts_one_for_each() -> None:
    assert token_ratio((32, 5), (288, 5)) == TokenRatio()


def test_fewer_words_of_a_seed_are_the_beginning_of_more() -> None:
    assert random_words("x", 300).startswith(random_words("x", 20) + " ")


def test_rounds_of_a_sweep_have_prompts_of_their_own() -> None:
    prompts = PromptGenerator(1, TokenRatio())
    assert prompts.text(a_job(), 0) != prompts.text(a_job(), 1)


@given(st.floats(1e-6, 1e9))
def test_ticks_reach_the_greatest_value_in_few_even_steps(top: float) -> None:
    positions = ticks(top)
    assert positions[0] == 0
    assert positions[-1] >= top * (1 - 1e-9)
    assert 3 <= len(positions) <= 8


def test_a_thinned_line_keeps_its_ends() -> None:
    points = [(float(x), float(x)) for x in range(10_000)]
    thinned = thin_out(points)
    assert (len(thinned), thinned[0], thinned[-1]) == (600, points[0], points[-1])


def test_what_servers_call_themselves_is_no_markup() -> None:
    picture = svg(
        Plot(
            title="<b>",
            x_label="x",
            y_label="y",
            series=[PlotSeries(name="<script>", points=[(0.0, 0.0), (1.0, 0.0)])],
        )
    )
    assert "<script>" not in picture
    assert "<b>" not in picture
    assert svg(Plot(title="", x_label="", y_label="", series=[])) == ""
