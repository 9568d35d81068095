"""`tessera bench`: an honest load test of an OpenAI-compatible server."""

import argparse
import asyncio
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version

from tessera.adapters.clock import now
from tessera.adapters.openai_api import OpenAiApi
from tessera.cli.bench_baseline import against
from tessera.cli.bench_html import html
from tessera.cli.bench_json import as_json
from tessera.cli.bench_plan import Load, Plan, api_key, plan
from tessera.cli.bench_prompts import Prompts
from tessera.cli.bench_report import Report, as_text
from tessera.cli.bench_run import Ask, Course, Meter
from tessera.cli.bench_server import PATHS, Manner, Model, chosen, learned
from tessera.cli.errors import CommandError
from tessera.cli.told import Told
from tessera.domain.bench.answers import Answer
from tessera.domain.bench.cautions import cautions
from tessera.domain.bench.figures import Figures, figures, knee_of
from tessera.domain.bench.jobs import Job, fitting, shared_by_design

_INTERRUPTED = 130
_FEW = 100
_WARM_ROUND = -1
"""Warm-up prompts have words of their own, which no later prompt begins with."""


def run(arguments: argparse.Namespace) -> Told:
    """The report; 130 after Ctrl-C, 1 when no request was answered."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each request is a connection
    return asyncio.run(told(arguments))


async def told(arguments: argparse.Namespace) -> Told:
    """The same, for who has a loop already."""
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    made = plan(arguments, seed)
    report = await measured(arguments, made)
    if made.baseline is not None:
        report = replace(report, against=against(made.baseline, report))
    if made.html is not None:
        try:
            made.html.write_text(html(report), encoding="utf-8")
        except OSError as error:
            report = replace(report, notes=(*report.notes, f"--html {made.html}: {error.strerror}"))
    text = as_json(report) if arguments.output == "json" else as_text(report)
    if report.interrupted:
        return Told(text, _INTERRUPTED)
    return Told(text, 0 if any(level.whole for level in report.levels) else 1)


async def measured(asked: argparse.Namespace, made: Plan) -> Report:
    """The load put on the server, with every answer to it."""
    api = OpenAiApi(made.base, api_key(asked), asked.timeout)
    try:
        model = await chosen(api, asked.model)
        manner = Manner(path=PATHS[asked.endpoint], model=model.name, natural_end=asked.natural_end)
        loads, notes = _fitting(made.loads, model)
        manner, tongue = await learned(api, manner, made.seed)
        began = now()
        test = _Test(api=api, manner=manner, prompts=Prompts(made.seed, tongue), plan=made)
        await test.warm(loads[0], asked.warmup)
        with _stopped_by_interrupt(test.stop):
            levels = await test.all(loads)
    finally:
        await api.close()
    shared = shared_by_design(loads[0].jobs)
    return Report(
        tessera=version("tessera"),
        at=began,
        url=made.base,
        model=model.name,
        endpoint=asked.endpoint,
        told=made.told,
        seed=made.seed,
        warmup=asked.warmup,
        timeout_seconds=asked.timeout,
        levels=tuple(levels),
        cautions=tuple(
            tuple(cautions(one, shared, natural_end=asked.natural_end)) for one in levels
        ),
        knee=knee_of(levels),
        swept=len(loads) > 1,
        peaks=made.peaks,
        price=made.price,
        interrupted=test.stop.is_set(),
        notes=(*notes, *_missing(levels, made)),
    )


class _Test:
    """The loads of one test, one after another."""

    def __init__(self, *, api: OpenAiApi, manner: Manner, prompts: Prompts, plan: Plan) -> None:
        self._api, self._manner, self._prompts, self._plan = api, manner, prompts, plan
        self.stop = asyncio.Event()

    async def warm(self, load: Load, count: int) -> None:
        """Requests like the first ones, which do not count."""
        jobs = [replace(job, arrival=0.0, blocks=None) for job in load.jobs[:count]]
        course = Course(api=self._api, meter=Meter(self._api, ()), stop=self.stop)
        places = min(load.concurrency or len(jobs), len(jobs))
        if places:
            await course.closed("warm-up", jobs, places, self._asking(_WARM_ROUND))

    async def all(self, loads: Sequence[Load]) -> list[Figures]:
        found: list[Figures] = []
        for round_, load in enumerate(loads):
            found.append(await self._one(load, round_))
            if self.stop.is_set():
                break
        return found

    async def _one(self, load: Load, round_: int) -> Figures:
        ask = self._asking(round_)
        course = Course(
            api=self._api,
            meter=Meter(self._api, self._plan.metrics),
            stop=self.stop,
            progress=_progress(load.name) if sys.stderr.isatty() else None,
        )
        if load.concurrency is None:
            level = await course.opened(load.name, load.jobs, ask)
        else:
            level = await course.closed(load.name, load.jobs, load.concurrency, ask)
        if course.progress is not None:
            sys.stderr.write("\r\x1b[K")
        return figures(level, self._plan.peaks, self._plan.price)

    def _asking(self, round_: int) -> Ask:
        async def ask(job: Job, due: float | None) -> Answer:
            body = self._manner.body(self._prompts.text(job, round_), job.output_tokens)
            return await self._api.answer(self._manner.path, body, job, due)

        return ask


def _fitting(loads: Sequence[Load], model: Model) -> tuple[list[Load], list[str]]:
    """What the model can hold, and a word on what was left out."""
    found, notes = [], []
    for load in loads:
        jobs = fitting(load.jobs, model.longest)
        if not jobs:
            job = load.jobs[0]
            raise CommandError(
                f"{model.name} holds {model.longest} tokens, a prompt of {job.input_tokens} and an "
                f"answer of {job.output_tokens} are more: take fewer --input-tokens or "
                "--output-tokens"
            )
        if left := len(load.jobs) - len(jobs):
            notes.append(
                f"{load.name}: {left} of {len(load.jobs)} requests are longer than the model's "
                f"{model.longest} tokens and were left out"
            )
        found.append(replace(load, jobs=jobs))
    return found, notes


def _missing(levels: Sequence[Figures], made: Plan) -> Iterator[str]:
    """What could not be told, and what would tell it."""
    if levels and not any(one.level.before.speaks for one in levels):
        yield (
            f"no vLLM counters at {', '.join(made.metrics)}: batch, preemptions, cache and MFU are "
            "not known; --metrics names the engines"
        )
    elif levels and made.peaks and all(one.work is None or one.work.mfu is None for one in levels):
        yield "no MFU: vLLM estimates its work only with --enable-mfu-metrics"
    if any(0 < one.whole < _FEW for one in levels):
        yield f"P99 of fewer than {_FEW} answers is the slowest one; --prompts asks for more"
    if made.price is None:
        yield "no prices: --price AMOUNT tells what an hour of the GPU costs"


def _progress(name: str) -> Callable[[Course], None]:
    def tell(course: Course) -> None:
        failed = sum(not answer.whole for answer in course.answers)
        tokens = sum(answer.output_tokens for answer in course.answers)
        seconds = max(course.api.now - course.began, 1e-9)
        sys.stderr.write(
            f"\r\x1b[K{name}: {len(course.answers)}/{course.total} answers, {failed} failed, "
            f"{course.in_flight} under way, {tokens / seconds:.0f} tokens/s, {seconds:.0f} s"
        )
        sys.stderr.flush()

    return tell


@contextmanager
def _stopped_by_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C ends the test with the report so far, a second one ends the program at once."""

    def interrupted() -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
