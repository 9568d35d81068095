"""`tessera bench` against the simulator and a server with faults."""

import asyncio
import gzip
import json
import os
import pty
import re
import signal
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typing_extensions import override

from tessera.cli.errors import CommandError
from tessera_lab.cli.bench.arguments import bench as bench_command
from tessera_lab.cli.bench.command import run_bench
from tests.lab.cli.scripted_server import (
    ResponseHandler,
    ScriptedServer,
    chunk,
    cutting,
    event,
    failing,
    good,
    hanging,
    refusing,
    scripted_server,
    stream_events,
    usage,
)
from tests.lab.sim.running import running
from world.slots import free_port

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    name: value
    for name, value in {**os.environ, "PYTHONPATH": str(ROOT / "operator")}.items()
    if not name.startswith("TESSERA_")
}
SMALL = ("--prompts", "12", "--warmup", "0", "--input-tokens", "60", "--output-tokens", "8")
pytestmark = pytest.mark.anyio


class CommandRun:
    def __init__(self, code: int | None, output: str, errors: str = "") -> None:
        self.code, self.output, self.errors = code, output, errors

    @property
    def report(self) -> Any:
        return json.loads(self.output)

    @property
    def level(self) -> Any:
        """The only load of the report."""
        (level,) = self.report["levels"]
        return level


async def bench(*arguments: str) -> CommandRun:
    """Run the command in this process."""
    output = await run_bench(bench_command.parse(arguments))
    return CommandRun(output.exit_code, output.text)


async def refusal(*arguments: str) -> str:
    """Return the error of a command that cannot measure anything."""
    with pytest.raises(CommandError) as refused:
        await bench(*arguments)
    return str(refused.value)


async def start_command(*arguments: str) -> asyncio.subprocess.Process:
    """Start the command in its own process."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.cli.main", "bench", *arguments),
        env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def wait_for_command(process: asyncio.subprocess.Process) -> CommandRun:
    async with asyncio.timeout(60):
        output, said = await process.communicate()
    return CommandRun(process.returncode, output.decode(), (said or b"").decode())


async def test_the_client_and_the_engine_count_the_same_tokens() -> None:
    async with running("--enable-mfu-metrics") as engine:
        run = await bench(
            *(engine.url, *SMALL, "--concurrency", "3", "--json", "--price", "3.50"),
            *("--gpu", "NVIDIA-A100-SXM4-80GB"),
        )
        metrics = await engine.metrics()
    level = run.level
    assert level["requests"] == {"completed": 12, "failed": {}, "unfinished": 0}
    assert (level["outputTokens"], level["exactTokens"]) == (12 * 8, True)
    assert level["inputTokens"] / 12 == pytest.approx(60, abs=6)
    assert level["engine"]["outputTokens"] == 12 * 8
    assert level["engine"]["countersMatch"] is True
    # The two probes are in the engine's counters and nowhere in the report.
    assert metrics["generation_tokens_total"] == 12 * 8 + 2 * 8
    assert 1 <= level["engine"]["batch"] <= 3
    assert level["engine"]["preemptions"] == 0
    assert 0 < level["engine"]["mbu"] < 1
    assert 0 < level["engine"]["mfu"] < 1
    latency = level["latencySeconds"]
    assert latency["ttft"]["count"] == latency["e2eLatency"]["count"] == 12
    assert latency["itl"]["count"] == 12 * 7
    assert latency["ttft"]["p50"] < latency["e2eLatency"]["p50"]
    per_million = float(level["cost"]["perMillionOutput"])
    assert per_million == pytest.approx(3.5 / 3600 / level["outputTokensPerSecond"] * 1e6)
    assert float(level["cost"]["run"]) == pytest.approx(3.5 * level["seconds"] / 3600, abs=1e-8)
    assert level["client"]["requestsPerSecond"] > 10


async def test_counters_of_several_engines_are_added_up_and_one_alone_is_doubted() -> None:
    async with (
        running() as first_engine,
        running() as second_engine,
        scripted_server(good) as front,
    ):
        for engine, tokens in ((first_engine, 40), (second_engine, 56)):
            await engine.post("/v1/completions", prompt="x", max_tokens=tokens, ignore_eos=True)

        async def relay(_: ScriptedServer, request: web.Request, body: Any) -> web.StreamResponse:
            """Generate four tokens on both engines for each response."""
            for engine in (first_engine, second_engine):
                await engine.post("/v1/completions", prompt="x", max_tokens=4, ignore_eos=True)
            return await good(front, request, body)

        front.handler = relay
        both = f"{first_engine.url}/metrics,{second_engine.url}/metrics"
        summed = await bench(front.url, *SMALL, "--json", "--metrics", both)
        alone = await bench(front.url, *SMALL, "--json", "--metrics", f"{first_engine.url}/metrics")
    assert (summed.level["engine"]["outputTokens"], summed.level["engine"]["countersMatch"]) == (
        96,
        True,
    )
    assert (alone.level["engine"]["outputTokens"], alone.level["engine"]["countersMatch"]) == (
        48,
        False,
    )
    assert any("the client 96" in warning for warning in alone.level["warnings"])


class Tags(HTMLParser):
    """Collects the tags of a page, and the URLs that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.loads: list[str] = []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]


async def test_a_sweep_is_shown_with_its_knee_and_plots_in_one_file(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    async with running() as engine:
        run = await bench(
            *(engine.url, *SMALL, "--sweep", "4,1,2", "--price", "2", "--html", str(page)),
        )
    assert run.code == 0
    assert re.search(r"^Knee: \d concurrent request", run.output, re.MULTILINE)
    loads = re.findall(r"^(\d) +(\d+) +0 ", run.output, re.MULTILINE)
    assert loads == [("1", "12"), ("2", "16"), ("4", "32")]
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.seen.count("svg") == 7
    assert (tags.loads, "script" in tags.seen, "url(" in text) == ([], False, False)
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert ET.fromstring(picture).tag == "svg"  # noqa: S314 - our own
        assert "nan" not in picture
    assert "USD/M OUT" in text


async def test_a_closed_loop_holds_as_many_as_it_should_and_no_more() -> None:
    async def three_at_once(
        server: ScriptedServer, request: web.Request, body: Any
    ) -> web.StreamResponse:
        await server.wait_for_requests(3)
        return await good(server, request, body)

    async with scripted_server(three_at_once) as server:
        run = await bench(server.url, *SMALL, "--concurrency", "3", "--json")
    assert (server.most_at_once, run.level["requests"]["completed"]) == (3, 12)


async def test_arrivals_of_an_open_loop_do_not_wait_for_answers() -> None:
    async def all_at_once(
        server: ScriptedServer, request: web.Request, body: Any
    ) -> web.StreamResponse:
        await server.wait_for_requests(12)
        return await good(server, request, body)

    async with scripted_server(all_at_once) as server:
        run = await bench(server.url, *SMALL, "--rate", "200", "--json", "--seed", "1")
    assert (server.most_at_once, run.level["requests"]["completed"]) == (12, 12)
    assert run.level["concurrency"] is None


async def test_warm_up_is_sent_and_not_counted_and_repeats_in_no_prompt() -> None:
    async with scripted_server(good) as server:
        run = await bench(server.url, *SMALL, "--warmup", "5", "--json")
    assert len(server.counted_bodies) == 5 + 12
    assert run.level["requests"]["completed"] == 12
    assert len({prompt[:40] for prompt in server.prompts}) == 17


async def test_the_same_seed_sends_the_same_prompts_and_another_one_others() -> None:
    sent = []
    for seed in ("7", "7", "8"):
        async with scripted_server(good) as server:
            await bench(
                *(server.url, *SMALL, "--seed", seed, "--concurrency", "1"),
                *("--input-tokens", "lognormal:60:200"),
            )
        sent.append(server.prompts)
    assert sent[0] == sent[1]
    assert not set(sent[0]) & set(sent[2])
    assert len({len(prompt.split()) for prompt in sent[0]}) > 5


async def test_prompts_have_the_tokens_that_were_asked_for_however_long_words_are() -> None:
    async with scripted_server(good) as server:
        run = await bench(server.url, *SMALL, "--json", "--shared-prefix", "20")
    assert run.level["inputTokens"] == 12 * 60
    begins = {" ".join(prompt.split()[:17]) for prompt in server.prompts}
    assert len(begins) == 1
    assert len(set(server.prompts)) == 12


async def test_a_trace_is_replayed_with_its_lengths(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv.gz"
    rows = ("arrival_s,input_tokens,output_tokens,client", "9000,40,3,a", "9000.1,50,4,b")
    file.write_bytes(gzip.compress("\n".join((*rows, "9000.1,9000,5,c\n")).encode()))
    async with scripted_server(good, longest=4096) as server:
        run = await bench(
            *(server.url, "--trace", str(file), "--speed", "2", "--warmup", "0", "--json")
        )
    assert [body["max_tokens"] for body in server.counted_bodies] == [3, 4]
    assert [3 + len(prompt.split()) for prompt in server.prompts] == [40, 50]
    assert 0.05 <= run.level["seconds"] < 4500
    assert any("1 of 3 requests left out" in note for note in run.report["notes"])


async def test_equal_blocks_of_a_trace_are_equal_text(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    rows = [(0, 1100, [0, 1, 2]), (10, 1000, [0, 1]), (20, 1024, [0, 3])]
    file.write_text(
        "".join(
            json.dumps(
                {"timestamp": at, "input_length": length, "output_length": 2, "hash_ids": ids}
            )
            + "\n"
            for at, length, ids in rows
        )
    )
    async with scripted_server(good) as server:
        await bench(server.url, "--trace", str(file), "--warmup", "2")
    first, second, third = (prompt.split() for prompt in server.prompts[2:])
    assert [len(words) + 3 for words in (first, second, third)] == [1100, 1000, 1024]
    assert first[:900] == second[:900]
    assert first[:500] == third[:500]
    assert first[520:600] != third[520:600]
    # The warm-up must not have filled the cache.
    assert not any(prompt.split()[:20] == first[:20] for prompt in server.prompts[:2])


async def never_counting(
    _: ScriptedServer, request: web.Request, __: dict[str, Any]
) -> web.StreamResponse:
    return await stream_events(request, chunk("a"), chunk("b c", "stop"), event(b"[DONE]"))


async def test_chunks_are_counted_only_where_there_is_no_usage_and_a_warning_says_so() -> None:
    async with scripted_server(never_counting, probes=0) as server:
        run = await bench(server.url, *SMALL, "--json", "--natural-end")
    assert (run.level["outputTokens"], run.level["exactTokens"]) == (24, False)
    assert any("no usage" in warning for warning in run.level["warnings"])
    assert all("ignore_eos" not in body for body in server.bodies)


async def test_a_server_that_refuses_stream_options_gets_requests_without_them() -> None:
    async def strict(
        server: ScriptedServer, request: web.Request, body: dict[str, Any]
    ) -> web.StreamResponse:
        if "stream_options" in body:
            return web.json_response({"error": {"message": "unknown: stream_options"}}, status=400)
        return await good(server, request, body)

    async with scripted_server(strict, probes=0) as server:
        run = await bench(server.url, *SMALL, "--json")
    assert (run.level["requests"]["completed"], run.level["exactTokens"]) == (12, False)


async def test_prompts_that_the_server_has_seen_get_a_warning() -> None:
    async def cached(_: ScriptedServer, request: web.Request, body: Any) -> web.StreamResponse:
        return await stream_events(request, chunk("a", "stop"), usage(body, 8, cached=48))

    async with scripted_server(cached) as server:
        run = await bench(server.url, *SMALL)
    assert "warm: 80% of the prompts' tokens" in run.output


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusing, "Http503"),
        (cutting, "ConnectionClosed"),
        (failing, "ErrorResponse"),
        (hanging, "Timeout"),
    ],
)
async def test_failures_are_counted_by_kind_and_do_not_end_the_test(
    answer: ResponseHandler, kind: str
) -> None:
    async def every_third(
        server: ScriptedServer, request: web.Request, body: dict[str, Any]
    ) -> web.StreamResponse:
        handler = good if len(server.counted_bodies) % 3 else answer
        return await handler(server, request, body)

    async with scripted_server(every_third) as server:
        run = await bench(
            *(server.url, *SMALL, "--timeout", "4", "--json", "--concurrency", "4"),
        )
    assert run.code == 0
    assert run.level["requests"] == {"completed": 8, "failed": {kind: 4}, "unfinished": 0}
    assert run.level["outputTokens"] == 8 * 8
    assert run.level["examples"][kind]


async def test_when_nothing_is_answered_there_is_a_report_and_the_code_is_1() -> None:
    async with scripted_server(refusing) as server:
        run = await bench(server.url, *SMALL)
    assert run.code == 1
    assert "12 Http503" in run.output
    assert "engine is currently busy" in run.output


async def test_an_interrupt_ends_with_the_report_so_far() -> None:
    async def first_five(
        server: ScriptedServer, request: web.Request, body: dict[str, Any]
    ) -> web.StreamResponse:
        handler = good if len(server.counted_bodies) <= 5 else hanging
        return await handler(server, request, body)

    async with scripted_server(first_five) as server:
        process = await start_command(server.url, *SMALL, "--json", "--concurrency", "2")
        await server.wait_for_requests(7)  # five responses and two that hang
        process.send_signal(signal.SIGINT)
        run = await wait_for_command(process)
    assert (run.code, run.errors) == (130, "")
    assert run.report["interrupted"] is True
    assert run.level["requests"] == {"completed": 5, "failed": {}, "unfinished": 2}
    assert "interrupted" in run.level["warnings"][0]


async def test_an_interrupted_sweep_does_not_go_on() -> None:
    async with scripted_server(hanging) as server:
        process = await start_command(server.url, *SMALL, "--sweep", "1,2")
        await server.wait_for_requests(1)
        process.send_signal(signal.SIGINT)
        run = await wait_for_command(process)
    assert run.code == 130
    assert "INTERRUPTED" in run.output
    assert len(server.counted_bodies) == 1


async def test_the_key_comes_from_the_environment_or_a_file_and_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESSERA_API_KEY", raising=False)
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    async with scripted_server(good, key="s3cret") as server:
        said = await refusal(server.url, *SMALL)
        assert "(401)" in said
        assert "TESSERA_API_KEY" in said
        runs = [await bench(server.url, *SMALL, "--json", "--api-key-file", str(file))]
        monkeypatch.setenv("TESSERA_API_KEY", "s3cret")
        runs.append(await bench(server.url, *SMALL, "--json"))
    for run in runs:
        assert run.level["requests"]["completed"] == 12
        assert "s3cret" not in run.output


async def test_a_model_is_taken_only_where_there_is_no_choice() -> None:
    async with scripted_server(good, models=("small", "large")) as server:
        assert "--model to one of small, large" in await refusal(server.url)
        said = await refusal(server.url, "--model", "larg")
        assert "has no model larg; it has large" in said
        run = await bench(f"{server.url}/v1/", *SMALL, "--model", "large", "--json")
    assert run.report["model"] == "large"
    assert {body["model"] for body in server.bodies} == {"large"}


async def test_a_missing_and_a_foreign_server_are_distinguished_from_one_that_fails() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    assert "does not respond" in await refusal(away)
    assert "Is the server up" in await refusal(away)
    async with scripted_server(good) as server:
        said = await refusal(f"{server.url}/docs")
        assert "is not an OpenAI API: GET /v1/models returns 404" in said
        said = await refusal(server.url, "--endpoint", "completions")
        assert "Http404" in said
        assert "try --endpoint chat" in said
    async with scripted_server(refusing, probes=0) as server:
        said = await refusal(server.url)
        assert "the first request to" in said
        assert "engine is currently busy" in said
    async with scripted_server(good, models=()) as server:
        assert "serves no model" in await refusal(server.url)
    async with scripted_server(good, longest=100) as server:
        assert "take fewer --input-tokens" in await refusal(server.url)


async def test_at_a_terminal_a_refusal_is_a_sentence_on_stderr() -> None:
    run = await wait_for_command(await start_command(f"http://127.0.0.1:{free_port()}"))
    assert (run.code, run.output) == (1, "")
    assert run.errors.startswith("tessera bench: http://127.0.0.1:")
    assert run.errors.count("\n") == 1


async def test_at_a_terminal_progress_is_shown_on_stderr_and_taken_away_again() -> None:
    terminal, side = pty.openpty()
    async with scripted_server(good) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tessera.cli.main", "bench", server.url, *SMALL, "--json"),
            env=ENVIRONMENT,
            stdout=asyncio.subprocess.PIPE,
            stderr=side,
        )
        os.close(side)
        run = await wait_for_command(process)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert run.level["requests"]["completed"] == 12
    assert "/12 responses, 0 failed" in shown
    assert shown.endswith("\r\x1b[K")
