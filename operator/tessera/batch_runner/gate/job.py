"""`tessera-batch gate`: the Job that asks one version of a service the suite of a gate.

The stable version answers it twice, since two runs of one model differ too. The Job of the changed
version then compares its answers with those, which are on the claim.
"""

import asyncio
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.api.text import counted, one_line
from tessera.batch_runner.errors import (
    BatchError,
    RefusedError,
    StorageRefusedError,
    TransientError,
)
from tessera.batch_runner.gate.answers import AnswersFile, answer_shares
from tessera.batch_runner.gate.asking import (
    AskOptions,
    EngineAwayError,
    GatewayAwayError,
    RequestsRefusedError,
)
from tessera.batch_runner.gate.run import (
    BASELINE_RUNS,
    JudgeUnreliableError,
    answer_suite,
    compared_prompts,
    judge_suite,
    questions_of,
)
from tessera.batch_runner.gate.suite import PromptSuite, SuiteError, read_suite
from tessera.batch_runner.heartbeat import STOP_MESSAGE
from tessera.batch_runner.model.download import DownloadProgress
from tessera.batch_runner.model.jobs import progress_app
from tessera.batch_runner.progress import serve
from tessera.domain.observed.gate_reports import MAX_MESSAGE_LENGTH, GateJobState, GateReport
from tessera.domain.quality.names import ROLES
from tessera.domain.quality.verdict import GateTerms, ScoredPrompt, Verdict, judge, judge_first

# Errors by which a Job says that it reached nobody, or was refused.
_STATES: Mapping[type[BatchError], GateJobState] = {
    RequestsRefusedError: "requestsRefused",
    GatewayAwayError: "gatewayAway",
    EngineAwayError: "engineAway",
}


class GateProblemError(RefusedError):
    """Nothing can be decided, for a reason that the gate's condition says."""

    def __init__(self, state: GateJobState, message: str) -> None:
        super().__init__(message)
        self.gate_state = state


@dataclass(slots=True)
class AnswersProgress(DownloadProgress):
    """Questions that are answered, and all."""

    digest: str = ""
    """SHA-256 of the answers in the file."""


@dataclass(slots=True)
class GateJobRunner:
    """One run of the Job; `report` is what it knows so far."""

    arguments: Namespace
    progress: AnswersProgress = field(default_factory=AnswersProgress)
    report: dict[str, Any] = field(init=False)
    answers: AnswersFile | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.report = {
            "phase": "gate",
            "state": "failed",
            "version": self.arguments.version,
            "baseline": self.arguments.baseline or "",
            "scorer": self.arguments.scorer,
        }

    async def run(self, stop: asyncio.Event) -> tuple[int, dict[str, Any]]:
        """Return exit code and report: 0 done, 1 transient failure, 3 the user has to act."""
        arguments = self.arguments
        try:
            async with serve(progress_app(self.progress), arguments.host, arguments.port):
                state = await self._until(stop)
        except SuiteError as error:
            return error.code, self.report | {"state": "suiteInvalid", "message": str(error)}
        except GateProblemError as error:
            return error.code, self.report | {"state": error.gate_state, "message": str(error)}
        except BatchError as error:
            state = _STATES.get(type(error), "failed")
            return error.code, self.report | {"state": state, "message": str(error)}
        return 0, self.report | {"state": state}

    async def _until(self, stop: asyncio.Event) -> GateJobState:
        work, stopped = asyncio.ensure_future(self._work()), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise TransientError(STOP_MESSAGE)
            return work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
            if self.answers is not None:
                self.report["answersDigest"] = self.answers.digest

    async def _work(self) -> GateJobState:
        suite = await asyncio.to_thread(self._read_suite)
        is_baseline = ROLES[self.arguments.role] == "Baseline"
        is_first = self.arguments.min_score is not None
        baseline = None if is_baseline or is_first else await self._baseline(suite)
        if baseline is not None:
            self.report["baselineAnswers"] = answer_shares(baseline.answers.values())
        path = self._path(suite, self.arguments.version)
        answers = await asyncio.to_thread(AnswersFile.read, path, self.arguments.answers_digest)
        self.answers = answers
        runs = BASELINE_RUNS if is_baseline else 1
        options = AskOptions(
            url=self.arguments.url,
            model=self.arguments.model,
            task=self.arguments.task,
            repeats=self.arguments.repeats,
            concurrency=self.arguments.concurrency,
            max_output_tokens=self.arguments.max_output_tokens,
            variant=self.arguments.variant,
            token_file=self.arguments.token_file,
        )
        await answer_suite(suite, answers, options, runs, self._show_progress)
        shares = answer_shares(each for each in answers.answers.values() if each.run < runs)
        self.report |= {"answers": shares, "answered": len(answers.answers)}
        if is_baseline:
            return "answered"
        judged_scores: Mapping[str, float] = {}
        if suite.is_judged and baseline is not None:
            judged_scores = await self._judge(suite, baseline, answers)
        try:
            prompts = compared_prompts(baseline, answers, judged_scores)
            # A large suite takes seconds, in which `/progress` is asked.
            verdict = await asyncio.to_thread(self._verdict, prompts)
        except ValueError as error:
            raise GateProblemError("suiteInvalid", f"nothing can be judged: {error}") from error
        self.report |= verdict_fields(verdict)
        return "judged"

    def _read_suite(self) -> PromptSuite:
        arguments = self.arguments
        try:
            suite = read_suite(arguments.suite)
        except StorageRefusedError as error:
            raise GateProblemError("suiteNotFound", str(error)) from error
        self.report |= {"suite": suite.digest, "prompts": suite.counts}
        if arguments.suite_digest not in (None, suite.digest):
            raise GateProblemError(
                "suiteChanged",
                f"the file has SHA-256 {suite.digest}, and spec.suite.digest is "
                f"{arguments.suite_digest}; run tessera gate pin, or restore the file",
            )
        for name, least in arguments.prompts:
            if suite.counts.get(name, 0) < least:
                raise GateProblemError(
                    "suiteChanged",
                    f"stratum {name} has {counted(suite.counts.get(name, 0), 'prompt')}, and "
                    f"spec.suite.prompts says {least}; run tessera gate pin, or restore the file",
                )
        if suite.is_judged and not arguments.judge_url:
            raise GateProblemError(
                "judgeNotFound", "the suite has rows of scorer judge; name one in spec.judge"
            )
        return suite

    def _path(self, suite: PromptSuite, *versions: str) -> Path:
        arguments = self.arguments
        parts = (*versions, suite.digest, arguments.scorer, f"r{arguments.repeats}")
        # A name has at most 255 bytes.
        return Path(arguments.answers, "-".join(part[:40] for part in parts) + ".jsonl")

    def _show_progress(self, done: int, total: int) -> None:
        self.progress.done, self.progress.total = done, total
        if self.answers is not None:
            self.progress.digest = self.answers.digest

    async def _baseline(self, suite: PromptSuite) -> AnswersFile:
        if not self.arguments.baseline:
            raise RefusedError("--baseline is not given")
        path = self._path(suite, self.arguments.baseline)
        baseline = await asyncio.to_thread(AnswersFile.read, path, self.arguments.baseline_digest)
        questions = list(questions_of(suite, BASELINE_RUNS, self.arguments.repeats))
        lacking = sum(key not in baseline.answers for _, key in questions)
        if lacking:
            raise GateProblemError(
                "baselineMissing",
                f"the claim lacks {lacking} of {len(questions)} answers of the stable version",
            )
        return baseline

    async def _judge(
        self, suite: PromptSuite, baseline: AnswersFile, answers: AnswersFile
    ) -> Mapping[str, float]:
        arguments = self.arguments
        if (arguments.judge_url, arguments.judge_model) == (arguments.url, arguments.model):
            raise GateProblemError("judgeNotFound", "the judge is the model that is tried")
        path = self._path(suite, arguments.version[:20], arguments.baseline[:20], "judged")
        # Others may write to the claim, and no report has the digest of this file.
        judged = await asyncio.to_thread(AnswersFile.read, path, "")
        options = AskOptions(
            url=arguments.judge_url,
            model=arguments.judge_model,
            concurrency=arguments.concurrency,
            token_file=arguments.token_file,
        )
        try:
            return await judge_suite(suite, baseline, answers, judged, options)
        except JudgeUnreliableError as error:
            raise GateProblemError("judgeUnreliable", str(error)) from error

    def _verdict(self, prompts: Sequence[ScoredPrompt]) -> Verdict:
        arguments = self.arguments
        if arguments.min_score is not None:
            return judge_first(prompts, arguments.min_score, arguments.min_prompts)
        terms = GateTerms(
            max_drop_points=arguments.max_drop_points,
            max_relative_drop=arguments.max_relative_drop,
            min_prompts=arguments.min_prompts,
        )
        return judge(prompts, terms)


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as fields of a report."""
    rows = (verdict.total, *verdict.strata)
    return {
        "verdict": verdict.outcome,
        "strata": [
            (
                *(row.name, row.prompts, row.baseline, row.candidate, row.loss_points),
                verdict.largest_loss_points if row is verdict.total else None,
                *(row.unseen_loss_points, row.is_lost),
            )
            for row in rows
        ],
        "missingPrompts": verdict.missing_prompts,
        "message": verdict.message,
    }


def wire_report(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report as JSON has it."""
    # Words of a suite are among those of its faults.
    message = one_line(str(fields.get("message", "")), MAX_MESSAGE_LENGTH)
    report = GateReport.model_validate({**fields, "message": message})
    return report.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def add_gate_command(command: ArgumentParser) -> None:
    """Add the options of `tessera-batch gate`."""
    command.add_argument("--gate", required=True, help="NAMESPACE/NAME, for the log")
    command.add_argument("--role", choices=sorted(ROLES), required=True)
    command.add_argument("--version", required=True, help="digest of what is asked")
    command.add_argument("--baseline", help="digest of what it is compared with")
    command.add_argument("--url", required=True, help="base URL of the engine")
    command.add_argument("--model", required=True, help="name of the model there")
    command.add_argument("--variant", default="", help="of the replica that gateways ask")
    command.add_argument("--judge-url", help="base URL of the judge")
    command.add_argument("--judge-model", help="name of the judge there")
    command.add_argument("--token-file", type=Path, help="bearer token for both URLs")
    command.add_argument("--task", choices=("chat", "rerank", "embed"), default="chat")
    command.add_argument("--suite", type=Path, required=True, help="JSONL file of prompts")
    command.add_argument("--suite-digest", help="SHA-256 that it has to have")
    command.add_argument(
        "--prompts",
        action="append",
        default=[],
        type=_least_prompts,
        metavar="STRATUM=N",
        help="prompts that a stratum has at least",
    )
    command.add_argument("--scorer", required=True, help="version of scorers and judge")
    command.add_argument("--answers", type=Path, required=True, help="folder of the answers")
    command.add_argument("--answers-digest", default="", help="SHA-256 of answers to go on with")
    command.add_argument("--baseline-digest", default="", help="SHA-256 of those to compare with")
    command.add_argument("--repeats", type=int, default=1, help="answers to each prompt")
    command.add_argument("--max-output-tokens", type=int, help="those of the longest answer")
    command.add_argument("--concurrency", type=int, default=8, help="prompts in flight")
    command.add_argument("--max-drop-points", type=float, default=2.0)
    command.add_argument("--max-relative-drop", type=float, default=0.05)
    command.add_argument("--min-prompts", type=int, default=30)
    command.add_argument("--min-score", type=float, help="that of a first version, from 0 to 1")
    command.add_argument("--report", type=Path, required=True, help="termination message")
    command.add_argument("--host", default="0.0.0.0", help="address of /progress")
    command.add_argument("--port", type=int, default=8000)


def _least_prompts(text: str) -> tuple[str, int]:
    name, equals, count = text.partition("=")
    if not equals or not count.isascii() or not count.isdigit():
        raise ArgumentTypeError(f"{text} is not STRATUM=N")
    return name, int(count)
