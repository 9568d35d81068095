"""The table of a change: quality as its Job judged it, with latency and cost of both versions."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from tessera.api.gate_reasons import GateOutcome
from tessera.api.inference_service import Slo
from tessera.api.quality_gate import AnswerShares, AnswersStatus, VerdictStatus
from tessera.api.text import one_line
from tessera.domain.observed.gate_reports import GateReport
from tessera.domain.quality.trial import ChangeTrial, TriedVersion

# Lengths of two runs of one model differ so much too; what is longer costs more.
_LENGTH_TOLERANCE = Decimal("0.05")
_MESSAGE_LENGTH = 1024
NOT_COMPARABLE = "NotComparable"
_NOT_ASKED = "quality: not asked, since speculation and prefix caching change no answers"
_NONE = Decimal(0)
# A verdict names shares of answers that score nothing: large ones, and those that differ by as
# much as a gate allows a loss by default.
_LARGE_SHARE, _SHARE_DIFFERENCE = Decimal("0.05"), Decimal("0.02")
_SCORELESS = (
    ("truncated", "Cut at maxTokens", "; raise maxTokens in the suite"),
    ("empty", "Empty", ""),
    ("refused", "Refused", ""),
)
NO_ANSWERS = AnswerShares(truncated=_NONE, empty=_NONE, refused=_NONE, mean_tokens=_NONE)


def with_cost(answers: AnswerShares, version: TriedVersion) -> AnswerShares:
    """Return what answers are like with what a million tokens of them cost."""
    price = version.per_million_tokens
    if price is None:
        return answers
    return answers.model_copy(update={"usd_per_million_tokens": price.rounded(6)})


def named_shares(candidate: AnswerShares, baseline: AnswerShares | None) -> str:
    """Return sentences on answers that were cut, empty or refused, each with a space before it.

    Empty where these are few, and about as many of both versions.
    """
    text = ""
    for field, words, advice in _SCORELESS:
        after: Decimal = getattr(candidate, field)
        before = after if baseline is None else getattr(baseline, field)
        if max(before, after) < _LARGE_SHARE and abs(after - before) < _SHARE_DIFFERENCE:
            continue
        text += f" {words}: {100 * after:.0f} % of the candidate's answers"
        text += "" if baseline is None else f", {100 * before:.0f} % of the baseline's"
        text += f"{advice}."
    return text


def judged(trial: ChangeTrial, report: GateReport, baseline: AnswersStatus | None) -> VerdictStatus:
    """Return the verdict on a change by the report of its Job.

    A loss of quality decides first, then latency, then cost; these two only on the same hardware.
    They alone decide on a change that changes no answers.
    """
    reason = GateOutcome(report.verdict or GateOutcome.INCONCLUSIVE)
    message, strata = _quality(report, baseline), report.strata
    quality = f"quality: {message}"
    if trial.is_of_latency:
        reason, strata, message, quality = GateOutcome.INCONCLUSIVE, (), _NOT_ASKED, _NOT_ASKED
    total = next((each for each in strata if each.name == "total"), None)
    candidate = before = None
    if report.answers is not None:
        shares = with_cost(report.answers, trial.candidate)
        candidate = _adjusted(shares, total.candidate if total is not None else None)
    if baseline is not None:
        answers = baseline.answers
        if baseline.hardware == trial.baseline.hardware:
            # Prices of today on both sides: a raise is no fault of the change.
            answers = with_cost(answers, trial.baseline)
        before = _adjusted(answers, total.baseline if total is not None else None)
    if baseline is not None and before is not None and candidate is not None:
        columns = _Columns(trial, before, candidate)
        is_comparable = baseline.hardware == trial.candidate.hardware != ""
        if is_comparable and trial.is_of_latency:
            timings = columns.timings()
            reason = GateOutcome.PASSED if timings else reason
            message = f"{timings or 'latency: not measured'}; {quality}"
        if not is_comparable:
            message = (
                f"{message.removesuffix('.')}; latency and cost: {NOT_COMPARABLE} "
                f"({baseline.hardware or 'unknown'} and {trial.candidate.hardware or 'unknown'})"
            )
        elif reason is not GateOutcome.FAILED and (slower := columns.slower(trial.slo)):
            reason, message = GateOutcome.SLOWER, f"{slower}; {quality}"
        elif reason is not GateOutcome.FAILED and (dearer := columns.dearer()):
            reason, message = GateOutcome.DEARER, f"{dearer}; {quality}"
    return VerdictStatus(
        service=trial.service.name,
        candidate=trial.candidate.digest,
        baseline=trial.baseline.digest,
        suite=report.suite,
        scorer=report.scorer,
        precision=trial.candidate.precision,
        variant=trial.candidate.variant,
        reason=reason,
        message=one_line(message, _MESSAGE_LENGTH),
        decided_at=trial.at.replace(microsecond=0),
        strata=strata,
        baseline_answers=before,
        candidate_answers=candidate,
        missing_prompts=0 if trial.is_of_latency else report.missing_prompts,
    )


def _quality(report: GateReport, baseline: AnswersStatus | None) -> str:
    before = None if baseline is None else baseline.answers
    return report.message + named_shares(report.answers or NO_ANSWERS, before)


def _adjusted(answers: AnswerShares, score: Decimal | None) -> AnswerShares:
    """Return them with the price of as many tokens of good answers."""
    cost = answers.usd_per_million_tokens
    if cost is None or not score:
        return answers
    adjusted = (cost / score).quantize(Decimal("0.000001"))
    return answers.model_copy(update={"usd_per_quality_adjusted_mtok": adjusted})


@dataclass(frozen=True, slots=True)
class _Columns:
    """Latency and cost of both versions on the same hardware, under the same load."""

    trial: ChangeTrial
    before: AnswerShares
    after: AnswerShares

    def timings(self) -> str:
        """Return what is known of both versions; empty if nothing is."""
        pairs = [
            (name, getattr(self.before, field), getattr(self.after, field))
            for name, field in (("TTFT", "ttft_p95_seconds"), ("ITL", "itl_p95_seconds"))
        ]
        return ", ".join(
            f"{name} p95 {after:f} s after {before:f} s"
            for name, before, after in pairs
            if None not in (before, after)
        )

    def slower(self, slo: Slo) -> str | None:
        """Return which target the changed version misses and the stable one keeps."""
        pairs = (
            ("spec.slo.ttftP95", slo.ttft_p95, "ttft_p95_seconds"),
            ("spec.slo.itlP95", slo.itl_p95, "itl_p95_seconds"),
        )
        for path, target, name in pairs:
            before, after = getattr(self.before, name), getattr(self.after, name)
            if before is None or after is None:
                continue
            limit = Decimal(str(target / timedelta(seconds=1)))
            if before <= limit < after:
                return f"{path}: {after:f} s where {limit:f} s are allowed and were {before:f} s"
        return None

    def dearer(self) -> str | None:
        """Return by how much a token costs more than allowed, longer answers counted."""
        gate, before, after = self.trial.gate, self.before, self.after
        if self.trial.baseline.hardware != self.trial.candidate.hardware:
            # The stable version has moved since it answered, so its price is of another time.
            return None
        costs = before.usd_per_million_tokens, after.usd_per_million_tokens
        if gate is None or gate.spec is None or costs[0] is None or costs[1] is None:
            return None
        allowed = costs[0] * (1 + gate.spec.max_cost_increase)
        length = Decimal(1)
        if before.mean_tokens:
            length = max(length, after.mean_tokens / before.mean_tokens / (1 + _LENGTH_TOLERANCE))
        if costs[1] * length <= allowed:
            return None
        return (
            f"spec.maxCostIncrease: {costs[1]:f} for a million tokens where {allowed:f} are "
            f"allowed, with answers of a mean length of {after.mean_tokens:f} after "
            f"{before.mean_tokens:f}"
        )
