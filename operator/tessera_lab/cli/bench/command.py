"""`tessera bench`: a load test of an OpenAI-compatible server."""

import asyncio
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace

from tessera import __version__
from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera_lab.cli.bench.baseline import compare_reports, read_baseline
from tessera_lab.cli.bench.html import render_html
from tessera_lab.cli.bench.json import as_json
from tessera_lab.cli.bench.plan import BenchLoad, BenchPlan, api_key, parse_plan
from tessera_lab.cli.bench.prompts import PromptGenerator
from tessera_lab.cli.bench.report import BenchReport, as_text
from tessera_lab.cli.bench.run import LoadRunner, MetricsScraper, SendRequest
from tessera_lab.cli.bench.server import (
    PATHS,
    RequestFormat,
    ServedModel,
    choose_model,
    probe_server,
)
from tessera_lab.load.load_metrics import LoadMetrics, load_metrics, sweep_knee
from tessera_lab.load.openai_client import OpenAiClient
from tessera_lab.load.reliability import reliability_warnings
from tessera_lab.load.requests import BenchRequest, requests_within, shared_prompt_share
from tessera_lab.load.responses import BenchResponse

_INTERRUPTED = 130
_FEW_RESPONSES = 100
# Warm-up prompts have words of their own, so that they are in no cache of the measured ones.
_WARMUP_ROUND = -1


def run(arguments: SimpleNamespace) -> Output:
    """Run the test; the exit code is 130 after Ctrl-C and 1 when no request completed."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard_limit, hard_limit)
    )  # each request is a connection
    return asyncio.run(run_bench(arguments))


async def run_bench(arguments: SimpleNamespace) -> Output:
    """Run the test in the caller's event loop."""
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    bench_plan = parse_plan(arguments, seed)
    baseline = read_baseline(arguments.baseline) if arguments.baseline else None
    report = await run_load_test(arguments, bench_plan)
    if baseline is not None:
        report = replace(report, comparison=compare_reports(baseline, report))
    if bench_plan.html is not None:
        try:
            bench_plan.html.write_text(render_html(report), encoding="utf-8")
        except OSError as error:
            report = replace(
                report, notes=(*report.notes, f"--html {bench_plan.html}: {error.strerror}")
            )
    text = as_json(report) if arguments.output == "json" else as_text(report)
    if report.interrupted:
        return Output(text, _INTERRUPTED)
    return Output(text, 0 if any(result.completed for result in report.results) else 1)


async def run_load_test(arguments: SimpleNamespace, bench_plan: BenchPlan) -> BenchReport:
    """Put the load on the server and return the report with every response."""
    api = OpenAiClient(bench_plan.base, api_key(arguments), arguments.timeout)
    try:
        model = await choose_model(api, arguments.model)
        request_format = RequestFormat(
            path=PATHS[arguments.endpoint], model=model.name, natural_end=arguments.natural_end
        )
        loads, notes = _loads_within_context(bench_plan.loads, model)
        request_format, token_ratio = await probe_server(api, request_format, bench_plan.seed)
        started_at = datetime.now(UTC)  # noqa: TID251 - the one look at the time of day
        prompts = PromptGenerator(bench_plan.seed, token_ratio)
        test = _LoadTest(
            api=api, request_format=request_format, prompts=prompts, bench_plan=bench_plan
        )
        await test.warm_up(loads[0], arguments.warmup)
        with _stop_on_interrupt(test.stop):
            results = await test.run_all(loads)
    finally:
        await api.close()
    shared = shared_prompt_share(loads[0].requests)
    return BenchReport(
        tessera=__version__,
        at=started_at,
        plan=bench_plan,
        model=model.name,
        endpoint=arguments.endpoint,
        warmup=arguments.warmup,
        timeout_seconds=arguments.timeout,
        results=tuple(results),
        warnings=tuple(
            tuple(reliability_warnings(result, shared, natural_end=arguments.natural_end))
            for result in results
        ),
        knee=sweep_knee(results),
        is_sweep=len(loads) > 1,
        interrupted=test.stop.is_set(),
        notes=(*notes, *_missing_metrics(results, bench_plan)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadTest:
    """The loads of one test, one after another."""

    api: OpenAiClient
    request_format: RequestFormat
    prompts: PromptGenerator
    bench_plan: BenchPlan
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def warm_up(self, load: BenchLoad, count: int) -> None:
        """Send requests like the first ones, which are not measured."""
        requests = [replace(request, arrival=0.0, blocks=None) for request in load.requests[:count]]
        runner = LoadRunner(api=self.api, meter=MetricsScraper(self.api, ()), stop=self.stop)
        concurrency = min(load.concurrency or len(requests), len(requests))
        if concurrency:
            send = self._sender(_WARMUP_ROUND)
            await runner.run_closed_loop("warm-up", requests, concurrency, send)

    async def run_all(self, loads: Sequence[BenchLoad]) -> list[LoadMetrics]:
        results: list[LoadMetrics] = []
        for round_, load in enumerate(loads):
            results.append(await self._run_load(load, round_))
            if self.stop.is_set():
                break
        return results

    async def _run_load(self, load: BenchLoad, round_: int) -> LoadMetrics:
        send = self._sender(round_)
        meter = MetricsScraper(self.api, self.bench_plan.metrics)
        progress = _progress(load.name) if sys.stderr.isatty() else None
        runner = LoadRunner(api=self.api, meter=meter, stop=self.stop, progress=progress)
        concurrency = load.concurrency
        if concurrency is None:
            measurement = await runner.run_open_loop(load.name, load.requests, send)
        else:
            measurement = await runner.run_closed_loop(load.name, load.requests, concurrency, send)
        if runner.progress is not None:
            sys.stderr.write("\r\x1b[K")
        return load_metrics(measurement, self.bench_plan.peaks, self.bench_plan.price)

    def _sender(self, round_: int) -> SendRequest:
        async def send(request: BenchRequest, due_at: float | None) -> BenchResponse:
            body = self.request_format.body(
                self.prompts.text(request, round_), request.output_tokens
            )
            return await self.api.send(self.request_format.path, body, request, due_at)

        return send


def _loads_within_context(
    loads: Sequence[BenchLoad], model: ServedModel
) -> tuple[list[BenchLoad], list[str]]:
    """Return the requests that fit into the model's context, and notes on those left out."""
    usable, notes = [], []
    for load in loads:
        requests = requests_within(load.requests, model.max_tokens)
        if not requests:
            request = load.requests[0]
            raise CommandError(
                f"{model.name} has a context of "
                f"{counted(model.max_tokens or 0, 'token')}, a request has "
                f"{request.input_tokens} in and {request.output_tokens} out: take fewer "
                "--input-tokens or --output-tokens"
            )
        if omitted := len(load.requests) - len(requests):
            notes.append(
                f"{load.name}: {omitted} of {counted(len(load.requests), 'request')} left out, "
                f"longer than the context of {counted(model.max_tokens or 0, 'token')}"
            )
        usable.append(replace(load, requests=requests))
    return usable, notes


def _missing_metrics(results: Sequence[LoadMetrics], bench_plan: BenchPlan) -> Iterator[str]:
    """Yield what is not known, and the option that would provide it."""
    if results and not any(result.measurement.before.is_vllm for result in results):
        yield (
            f"no vLLM metrics at {', '.join(bench_plan.metrics)}: batch, preemptions, prefix hits "
            "and MFU are not known; give the engines' URLs with --metrics"
        )
    elif (
        results
        and bench_plan.peaks
        and all(result.activity is None or result.activity.mfu is None for result in results)
    ):
        yield "no MFU: vLLM estimates its work only with --enable-mfu-metrics"
    if any(0 < result.completed < _FEW_RESPONSES for result in results):
        few = counted(_FEW_RESPONSES, "request")
        yield f"P99 of fewer than {few} is the slowest one; raise --prompts"
    if bench_plan.price is None:
        yield "no cost: give the price of a GPU hour with --price"


def _progress(name: str) -> Callable[[LoadRunner], None]:
    def write_progress(runner: LoadRunner) -> None:
        failed = sum(not response.complete for response in runner.responses)
        tokens = sum(response.output_tokens for response in runner.responses)
        seconds = max(runner.api.now - runner.started_at, 1e-9)
        sys.stderr.write(
            f"\r\x1b[K{name}: {len(runner.responses)}/{runner.total} responses, {failed} failed, "
            f"{runner.in_flight} in flight, {tokens / seconds:.0f} tok/s, {seconds:.0f} s"
        )
        sys.stderr.flush()

    return write_progress


@contextmanager
def _stop_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Let Ctrl-C end the test with the report so far; a second one exits at once."""

    def interrupted() -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    loop = asyncio.get_running_loop()
    previous_handler = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, previous_handler)
