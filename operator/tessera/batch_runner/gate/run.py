"""A suite that two versions of a model answer, and what their answers say."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from tessera.api.text import counted
from tessera.batch_runner.errors import RefusedError
from tessera.batch_runner.gate.answers import (
    MAX_STORED_TEXT,
    AnswersFile,
    mean_scores,
    score_answer,
)
from tessera.batch_runner.gate.asking import (
    AskOptions,
    PromptAsker,
    QuestionKey,
    RequestsRefusedError,
    ask_all,
)
from tessera.batch_runner.gate.judging import REPLY_FORM, judge_answers, pairs_of
from tessera.batch_runner.gate.scorers import ModelAnswer
from tessera.batch_runner.gate.suite import PromptSuite, SuiteError, SuitePrompt
from tessera.domain.quality.verdict import ScoredPrompt

# The stable version answers every prompt so often: two runs of one model differ too.
BASELINE_RUNS = 2
# Repeats of all runs together, since each answer's numbers are held in memory.
MAX_QUESTIONS = 200_000
_JUDGE_SECONDS = 120.0


class JudgeUnreliableError(RefusedError):
    """The judge cannot be trusted, so its rows decide nothing."""


def questions_of(
    suite: PromptSuite, runs: int, repeats: int
) -> Iterator[tuple[SuitePrompt, QuestionKey]]:
    """Yield every question, a whole run after the other."""
    for run in range(runs):
        for prompt in suite.prompts:
            for repeat in range(repeats):
                yield prompt, QuestionKey(prompt.name, run, repeat)


async def answer_suite(
    suite: PromptSuite,
    answers: AnswersFile,
    options: AskOptions,
    runs: int,
    show_progress: Callable[[int, int], None],
) -> None:
    """Ask what has no answer yet; `show_progress` gets the answers so far and all questions.

    Raises SuiteError for a suite that is for another kind of model.
    """
    if suite.is_ranked != (options.task != "chat"):
        raise SuiteError(
            "the suite has documents to rank, and the model answers: use a suite with messages"
            if suite.is_ranked
            else "the suite has messages, and the model ranks: use a suite with documents"
        )
    questions = list(questions_of(suite, runs, options.repeats))
    if len(questions) > MAX_QUESTIONS:
        raise SuiteError(
            f"a run asks {len(questions)} times, and the limit is {MAX_QUESTIONS}: use a smaller "
            "suite, or fewer repeats"
        )
    pending = [each for each in questions if each[1] not in answers.answers]
    done = len(questions) - len(pending)
    show_progress(done, len(questions))

    def record(prompt: SuitePrompt, key: QuestionKey, answer: ModelAnswer) -> None:
        nonlocal done
        line = score_answer(prompt, key, answer)
        answers.append(line, needs_text=prompt.scorer is None)
        done += 1
        show_progress(done, len(questions))

    try:
        async with PromptAsker(options) as asker:
            await ask_all(asker, pending, record, options.concurrency)
    finally:
        answers.close()


async def judge_suite(
    suite: PromptSuite,
    baseline: AnswersFile,
    candidate: AnswersFile,
    judged: AnswersFile,
    options: AskOptions,
) -> Mapping[str, float]:
    """Return the candidate's score of each prompt that a judge scores; the baseline's is the rest.

    Raises JudgeUnreliableError, also for answers whose end no judge would see, and
    RequestsRefusedError.
    """
    options = replace(options, extra=REPLY_FORM, prompt_seconds=_JUDGE_SECONDS)
    pairs = dict(pairs_of(suite, baseline, candidate))
    long = sorted({key.prompt for key, pair in pairs.items() if _is_cut(pair)})
    if long:
        raise JudgeUnreliableError(
            f"a judge sees answers of fewer than {MAX_STORED_TEXT:,} characters whole, and those "
            f"to {counted(len(long), 'prompt')} are longer, such as to {long[0]}: lower maxTokens "
            "of these rows"
        )
    try:
        async with PromptAsker(options) as asker:
            reliability = await judge_answers(asker, suite, pairs, judged, options.concurrency)
    except RequestsRefusedError:
        raise
    except RefusedError as error:
        raise JudgeUnreliableError(f"the judge: {error}") from error
    finally:
        judged.close()
    if not reliability.is_reliable:
        raise JudgeUnreliableError(reliability.text)
    return mean_scores(judged.of_run(0))


def _is_cut(pair: tuple[str, str]) -> bool:
    return max(map(len, pair)) >= MAX_STORED_TEXT


def compared_prompts(
    baseline: AnswersFile | None,
    candidate: AnswersFile,
    judged_scores: Mapping[str, float],
) -> list[ScoredPrompt]:
    """Return the scores of both versions for what the candidate answered.

    A first version has no baseline, and its own scores stand there. `judged_scores` are those of
    judged prompts, of which the ones without a score are left out.
    Raises ValueError for a prompt that the baseline did not answer.
    """
    answers = {answer.prompt: answer for answer in candidate.of_run(0)}
    after = mean_scores(candidate.of_run(0))
    before, again = after, dict[str, float]()
    if baseline is not None:
        before, again = mean_scores(baseline.of_run(0)), mean_scores(baseline.of_run(1))
    if after.keys() - before.keys():
        raise ValueError("some prompts have no score of the baseline")
    return [
        ScoredPrompt(
            id=name,
            stratum=answer.stratum,
            group=answer.group,
            weight=answer.weight,
            baseline=1 - judged_scores[name] if answer.is_judged else before[name],
            # Two runs of one version are not judged.
            second_baseline=None if answer.is_judged else again.get(name),
            candidate=judged_scores[name] if answer.is_judged else after[name],
        )
        for name, answer in answers.items()
        if not answer.is_judged or name in judged_scores
    ]
