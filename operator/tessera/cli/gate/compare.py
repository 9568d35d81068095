"""`tessera gate compare`: two files of answers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from tessera.api.text import counted
from tessera.batch_runner.errors import BatchError
from tessera.batch_runner.gate.answers import AnswersFile, answer_shares
from tessera.batch_runner.gate.run import compared_prompts
from tessera.cli.errors import CommandError
from tessera.cli.gate.table import AskedVersion, report
from tessera.cli.output import Output
from tessera.domain.quality.comparison import named_shares
from tessera.domain.quality.verdict import GateTerms, judge


def run(arguments: SimpleNamespace) -> Output:
    """Print the table."""
    before = _read("BASELINE", arguments.baseline)
    after = _read("CANDIDATE", arguments.candidate)
    prompts = [{answer.prompt for answer in each.of_run(0)} for each in (before, after)]
    if other := prompts[0] ^ prompts[1]:
        raise CommandError(
            f"{counted(len(other), 'prompt')}, such as {min(other)}, have an answer in one of the "
            "files only; compare files of the same suite"
        )
    return compare_answers(arguments, before, after, {}, (arguments.against_price, arguments.price))


def compare_answers(
    arguments: SimpleNamespace,
    before: AnswersFile,
    after: AnswersFile,
    judged_scores: Mapping[str, float],
    prices: tuple[float | None, float | None],
) -> Output:
    """Return the table of two versions; `judged_scores` are the candidate's scores by a judge."""
    terms = GateTerms(
        max_drop_points=arguments.max_drop_points,
        max_relative_drop=arguments.max_relative_drop,
        min_prompts=arguments.min_prompts,
    )
    try:
        verdict = judge(compared_prompts(before, after, judged_scores), terms)
    except ValueError as error:
        raise CommandError(f"nothing to compare: {error}") from error
    scores = verdict.total.baseline, verdict.total.candidate
    baseline, candidate = (
        AskedVersion(name=name, score=score, shares=shares, price=price)
        for name, score, answers, price in zip(
            ("baseline", "candidate"), scores, (before, after), prices, strict=True
        )
        if (shares := answer_shares(answers.answers.values())) is not None
    )
    message = verdict.message + named_shares(candidate.shares, baseline.shares)
    return report(arguments.output, candidate, baseline, replace(verdict, message=message))


def _read(option: str, name: str) -> AnswersFile:
    try:
        answers = AnswersFile.read(Path(name).expanduser())
    except BatchError as error:
        raise CommandError(f"{option} {name}: {error}") from error
    if not answers.answers:
        raise CommandError(f"{option} {name} has no answers; name a file of tessera gate run")
    return answers
