"""Traces: what is read, what is refused, and how windows are cut and overlaid."""

import gzip
import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace, trace_csv
from tessera_lab.load.trace_rows import TraceError

HEAD = "arrival_s,input_tokens,output_tokens\n"
WITH_CLIENT = "client,arrival_s,output_tokens,input_tokens\n"
TRACES = Path(__file__).parents[4] / "shared/traces"


def written(folder: Path, text: str) -> str:
    path = folder / "busy.day.csv"
    path.write_text(text)
    return str(path)


def mooncake(*rows: tuple[float, int, int, list[int] | None]) -> str:
    return "".join(
        json.dumps(
            {"timestamp": at, "input_length": prompt, "output_length": output}
            | ({} if ids is None else {"hash_ids": ids})
        )
        + "\n"
        for at, prompt, output, ids in rows
    )


def a_trace(*arrivals: float, seconds: float = 10.0) -> Trace:
    numbers = range(1, len(arrivals) + 1)
    return Trace(
        name="test",
        seconds=seconds,
        arrivals=array("d", arrivals),
        input_tokens=array("i", (10 * number for number in numbers)),
        output_tokens=array("i", numbers),
        clients=array("i", numbers),
        prefixes=tuple((number,) for number in numbers),
    )


def test_a_csv_file_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, f"{WITH_CLIENT}7,0.5,20,10\n\n8,3,0,30\n"))
    assert (trace.name, trace.seconds, len(trace)) == ("busy.day", 4.0, 2)
    assert list(trace.arrivals) == [0.5, 3.0]
    assert list(trace.input_tokens) == [10, 30]
    assert list(trace.output_tokens) == [20, 1]
    assert list(trace.clients or ()) == [7, 8]
    assert trace.prefixes is None


def test_a_trace_is_written_as_it_is_read_below_a_comment(tmp_path: Path) -> None:
    trace = a_trace(0.25, 2.0, seconds=3.0)
    read = read_trace(written(tmp_path, f"# drawn\n\n{trace_csv(trace)}"))
    assert read == replace(trace, name="busy.day", prefixes=None)
    bad = written(tmp_path, f"# drawn\n{HEAD}0,1,1\nx,1,1\n")
    with pytest.raises(TraceError, match="line 4: not numbers"):
        read_trace(bad)


def test_prefixes_of_a_compressed_mooncake_file_are_its_full_blocks(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl.gz"
    text = mooncake((0, 1100, 5, [4, 5, 6]), (3000, 512, 7, [4]))
    path.write_bytes(gzip.compress(text.encode()))
    trace = read_trace(str(path))
    assert list(trace.arrivals) == [0.0, 3.0]
    assert trace.prefixes == ((4, 5), (4,))
    assert trace.clients is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: missing column arrival_s"),
        ("\n\n", "line 1: missing column arrival_s"),
        (HEAD, "has no requests"),
        ("arrival_s;input_tokens;output_tokens\n0;1;1\n", "line 1: missing column arrival_s"),
        (f"{HEAD}0,1,1\n-1,1,1\n", "line 3: arrival -1"),
        (f"{HEAD}5,1,1\n4,1,1\n", "line 3: arrival 4 is before 5"),
        (f"{HEAD}nan,1,1\n", "line 2: arrival nan"),
        (f"{HEAD}inf,1,1\n", "line 2: arrival inf"),
        (f"{HEAD}4e9,1,1\n", "line 2: arrival 4e+09"),
        (f"{HEAD}0,0,1\n", "line 2: arrival 0, input 0"),
        (f"{HEAD}0,1,-1\n", "output -1 is invalid"),
        (f"{HEAD}0,10000001,1\n", "input 10000001, output 1 is invalid"),
        (f"{HEAD}0,1{'0' * 30},1\n", "input beyond 10^18"),
        (f"{HEAD}0,1.5,1\n", "line 2: not numbers: 0, 1.5, 1"),
        (f"{HEAD}0,1\n", "line 2: not numbers: 0, 1"),
        (f"{WITH_CLIENT}alice,0,1,1\n", "line 2: client alice is not a number"),
        (mooncake((0, 5, 5, None), (0, 5, 5, [1])), "line 2: hash_ids, which rows above do not"),
        (mooncake((0, 5, 5, [1]), (0, 5, 5, None)), "line 2: no hash_ids"),
        (mooncake((0, 5, 5, [-1])), "line 1: an id in hash_ids is negative"),
        (mooncake((0, 513, 5, [1])), "line 1: 1 block of 512 cannot hold 513 tokens"),
        (mooncake((float("nan"), 5, 5, None)), "line 1: arrival nan"),
        ('{"timestamp": 0, "input_length": 1e999, "output_length": 1}', "line 1: not numbers: inf"),
        ("{" * 5000, "line 1: JSONDecodeError"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as error:
        read_trace(path)
    assert str(error.value).startswith(path)
    assert problem in str(error.value)


def test_broken_gzip_is_reported_and_so_is_what_is_no_file(tmp_path: Path) -> None:
    whole = gzip.compress((HEAD + "0,1,1\n" * 9).encode())
    for content in (b"\x1f\x8bxx", whole[:-6], whole[:-6] + b"123456", b"\x89PNG\xff\xfe"):
        path = tmp_path / "broken.csv.gz"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=r"broken\.csv\.gz is neither text nor complete gzip"):
            read_trace(str(path))
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(str(tmp_path))


def test_a_cut_begins_at_zero_and_excludes_its_end() -> None:
    trace = a_trace(0.0, 2.0, 4.0, 6.0).cut(2.0, 6.0)
    assert list(trace.arrivals) == [0.0, 2.0]
    assert (trace.seconds, list(trace.input_tokens), trace.prefixes) == (
        4.0,
        [20, 30],
        ((2,), (3,)),
    )
    ten_seconds = a_trace(1.0)
    with pytest.raises(ValueError, match="no part of the window of 10 s"):
        ten_seconds.cut(5.0, 11.0)


def test_overlaid_copies_wrap_around_the_window_in_order() -> None:
    trace = a_trace(1.0, 8.0).overlaid(3, 4.0)
    assert list(trace.arrivals) == [1.0, 2.0, 5.0, 6.0, 8.0, 9.0]
    assert list(trace.clients or ()) == [1, 2, 1, 2, 2, 1]
    assert trace.seconds == 10.0


def test_overlaid_copies_share_no_prefix() -> None:
    trace = replace(a_trace(1.0, 8.0), prefixes=((0, 1), (0, 5))).overlaid(2, 4.0)
    assert trace.prefixes == ((0, 1), (6, 11), (6, 7), (0, 5))


def test_quantized_arrivals_spread_within_their_step_by_a_seed() -> None:
    quantized = a_trace(*[0.0] * 200, *[3.0] * 50, 4.0, seconds=5.0)
    trace = quantized.spread(3.0, seed=1)
    arrivals = list(trace.arrivals)
    assert arrivals == sorted(arrivals)
    assert all(0.0 <= arrival < 3.0 for arrival in arrivals[:200])
    assert 80 < sum(arrival < 1.5 for arrival in arrivals[:200]) < 120
    # The step of 3 s at 3.0 ends with the arrival recorded at 4.0.
    assert all(3.0 <= arrival < 4.0 for arrival in arrivals[200:250])
    assert trace.seconds == 7.0 > arrivals[250] >= 4.0
    assert trace == quantized.spread(3.0, seed=1) != quantized.spread(3.0, seed=2)


@pytest.mark.skipif(not TRACES.exists(), reason="needs ../shared/traces")
def test_public_traces_are_read_as_their_page_says() -> None:
    code = read_trace(str(TRACES / "azure2023_code.csv.gz"))
    assert (len(code), round(code.seconds / 60, 1)) == (8819, 57.3)
    conversation = read_trace(str(TRACES / "mooncake_conversation.jsonl.gz"))
    assert len(conversation) == len(conversation.prefixes or ()) == 12031
