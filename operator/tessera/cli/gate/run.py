"""`tessera gate run`: a suite is asked from here."""

import asyncio
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Literal

from click.termui import progressbar

from tessera.batch_runner.errors import BatchError
from tessera.batch_runner.gate.answers import AnswersFile, answer_shares
from tessera.batch_runner.gate.asking import AskOptions
from tessera.batch_runner.gate.run import BASELINE_RUNS, answer_suite, judge_suite
from tessera.batch_runner.gate.suite import PromptSuite, read_suite
from tessera.cli.errors import CommandError
from tessera.cli.files import read_text
from tessera.cli.gate.compare import compare_answers
from tessera.cli.gate.table import AskedVersion, report
from tessera.cli.output import Output

_SECONDS_PER_HOUR = 3600
# That somebody waits at a terminal for a server that does not answer.
_AWAY_SECONDS = 30.0


def run(arguments: SimpleNamespace) -> Output:
    """Ask the suite, and print the table."""
    try:
        suite = read_suite(Path(arguments.suite).expanduser())
        if suite.is_judged and None in (arguments.judge, arguments.judge_model, arguments.against):
            raise CommandError(
                "the suite has rows of scorer judge: write --judge, --judge-model and --against"
            )
        with _answers_folder(arguments.answers) as folder:
            return asyncio.run(_ask(arguments, suite, folder))
    except BatchError as error:
        raise CommandError(str(error)) from error


@contextmanager
def _answers_folder(name: str | None) -> Iterator[Path]:
    if name is not None:
        yield Path(name).expanduser()
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


async def _ask(arguments: SimpleNamespace, suite: PromptSuite, folder: Path) -> Output:
    key_file = arguments.api_key_file
    options = AskOptions(
        url=_base(arguments.url),
        model=arguments.model,
        task=arguments.task,
        repeats=arguments.repeats,
        concurrency=arguments.concurrency,
        away_seconds=_AWAY_SECONDS,
        token=read_text("--api-key-file", key_file).strip() if key_file else "",
    )
    after, after_speed = await _answer("candidate", suite, folder, options)
    price = _price(arguments.price, arguments.hourly, after_speed)
    if arguments.against is None:
        return _alone(arguments, after, price)
    model = arguments.against_model or arguments.model
    against = replace(options, url=_base(arguments.against), model=model)
    before, before_speed = await _answer("baseline", suite, folder, against)
    judged_scores: Mapping[str, float] = {}
    if suite.is_judged:
        name = f"judged-{_digest(options, against, arguments.judge, arguments.judge_model)}.jsonl"
        judge = replace(options, url=_base(arguments.judge), model=arguments.judge_model, repeats=1)
        judged = AnswersFile.read(folder / name)
        judged_scores = await judge_suite(suite, before, after, judged, replace(judge, task="chat"))
    before_price = _price(arguments.against_price, arguments.against_hourly, before_speed)
    return compare_answers(arguments, before, after, judged_scores, (before_price, price))


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


async def _answer(
    role: Literal["baseline", "candidate"], suite: PromptSuite, folder: Path, options: AskOptions
) -> tuple[AnswersFile, float | None]:
    """Return the answers, and output tokens a second while they were asked."""
    name = f"{role}-{_digest(suite.digest, options.url, options.model, options.repeats)}.jsonl"
    answers = AnswersFile.read(folder / name)
    known = sum(answer.output_tokens for answer in answers.answers.values())
    begin = time.monotonic()
    runs = BASELINE_RUNS if role == "baseline" else 1
    # The length is known once the questions are counted.
    with progressbar(length=1, label=role, file=sys.stderr) as bar:

        def show_progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        await answer_suite(suite, answers, options, runs, show_progress)
    tokens = sum(answer.output_tokens for answer in answers.answers.values()) - known
    return answers, tokens / (time.monotonic() - begin) if tokens else None


def _price(price: float | None, hourly: float | None, speed: float | None) -> float | None:
    """Return the USD for a million output tokens; by the hour under the load of this call."""
    if price is not None or hourly is None or speed is None:
        return price
    return hourly / _SECONDS_PER_HOUR / speed * 1e6


def _alone(arguments: SimpleNamespace, answers: AnswersFile, price: float | None) -> Output:
    shares, known = answer_shares(answers.answers.values()), tuple(answers.of_run(0))
    if shares is None:
        raise CommandError("no prompt was answered")
    score = sum(answer.weight * answer.score for answer in known)
    score /= sum(answer.weight for answer in known)
    asked = AskedVersion(name=arguments.model, score=score, shares=shares, price=price)
    return report(arguments.output, asked, None, None)
