"""The table of a comparison: quality, latency and dollars of two versions."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.quality_gate import AnswerShares
from tessera.cli.output import Output
from tessera.cli.text import cell, table
from tessera.domain.quality.verdict import Verdict

_HEAD = ("VERSION", "QUALITY", "LATENCY", "DOLLARS")
_STRATA_HEAD = ("STRATUM", "PROMPTS", "BASELINE", "CANDIDATE", "LOSS", "UNSEEN LOSS", "LOST")
_SHARES_HEAD = ("ANSWERS", "TRUNCATED", "EMPTY", "REFUSED", "MEAN TOKENS")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedVersion:
    """What is known of one version."""

    name: str
    score: float | None
    """None where quality is not asked, since it cannot change."""
    shares: AnswerShares
    price: float | None = None
    """USD for a million output tokens; None if it is not known."""

    @property
    def adjusted_price(self) -> float | None:
        """USD for as many tokens of good answers."""
        return self.price / self.score if self.price is not None and self.score else None

    @property
    def thousand_answers(self) -> float | None:
        """USD for a thousand answers."""
        return None if self.price is None else self.price * float(self.shares.mean_tokens) / 1000

    def cells(self) -> tuple[str, ...]:
        """Return its row."""
        ttft, itl = self.shares.ttft_p95_seconds, self.shares.itl_p95_seconds
        latency = f"TTFT {cell(ttft, '{:.3f} s')}, ITL {cell(itl, '{:.4f} s')}"
        quality = "not asked" if self.score is None else f"{100 * self.score:.2f} of 100"
        dollars = "-"
        if self.price is not None:
            adjusted = cell(self.adjusted_price, "{:.4f}")
            dollars = f"{self.price:.4f} per Mtok, {adjusted} by quality"
        return self.name, quality, latency, dollars

    def fields(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "score": self.score,
            **self.shares.model_dump(mode="json", by_alias=True, exclude_none=True),
            "usdPerMillionTokens": self.price,
            "usdPerQualityAdjustedMtok": self.adjusted_price,
            "usdPerThousandAnswers": self.thousand_answers,
        }


def report(
    form: str, candidate: AskedVersion, baseline: AskedVersion | None, verdict: Verdict | None
) -> Output:
    """Return the table as text or JSON; exit code 1 where a loss is proven."""
    versions = [baseline, candidate] if baseline is not None else [candidate]

    def body() -> dict[str, Any]:
        fields = {"versions": [version.fields() for version in versions]}
        if verdict is None:
            return fields
        saved = _saved(candidate, baseline)
        return fields | {
            "verdict": {to_camel(name): value for name, value in asdict(verdict).items()},
            "usdSavedPerThousandAnswers": saved,
            "usdSavedPerPoint": _per_point(saved, verdict),
        }

    is_lost = verdict is not None and verdict.outcome == "Failed"
    lines = _lines(versions, verdict)
    return Output.of(form, lines, body, exit_code=int(is_lost))


def _lines(versions: list[AskedVersion], verdict: Verdict | None) -> Iterator[str]:
    rows = [version.cells() for version in versions]
    if len(versions) > 1:
        rows.append(("change", *_change(versions[0], versions[1], verdict)))
    yield from table(_HEAD, rows)
    yield ""
    yield from table(_SHARES_HEAD, [_shares(version) for version in versions])
    if verdict is None:
        return
    yield ""
    strata = [
        (
            row.name,
            str(row.prompts),
            f"{row.baseline:.4f}",
            f"{row.candidate:.4f}",
            f"{row.loss_points:.2f}",
            f"{row.unseen_loss_points:.2f}",
            "yes" if row.is_lost else "no",
        )
        for row in (verdict.total, *verdict.strata)
    ]
    yield from table(_STRATA_HEAD, strata, str.rjust)
    yield ""
    yield f"{verdict.outcome}: {verdict.message}"


def _shares(version: AskedVersion) -> tuple[str, ...]:
    shares = version.shares
    parts = (f"{each:.1%}" for each in (shares.truncated, shares.empty, shares.refused))
    return version.name, *parts, f"{shares.mean_tokens:f}"


def _change(
    baseline: AskedVersion, candidate: AskedVersion, verdict: Verdict | None
) -> tuple[str, str, str]:
    quality = "-"
    if verdict is not None:
        bound = cell(verdict.largest_loss_points, ", loss at most {:.2f}")
        quality = f"{-verdict.total.loss_points:+.2f} points{bound}"
    pairs = [
        (name, getattr(baseline.shares, field), getattr(candidate.shares, field))
        for name, field in (("TTFT", "ttft_p95_seconds"), ("ITL", "itl_p95_seconds"))
    ]
    latency = ", ".join(
        f"{name} {after / before - 1:+.0%}" if before and after is not None else f"{name} -"
        for name, before, after in pairs
    )
    saved, dollars = _saved(candidate, baseline), "-"
    if saved is not None:
        per_point = _per_point(saved, verdict)
        dollars = f"{saved:.4f} saved per 1,000 answers"
        dollars += "" if per_point is None else f", {per_point:.4f} per point lost"
    return quality, latency, dollars


def _saved(candidate: AskedVersion, baseline: AskedVersion | None) -> float | None:
    """Return the USD that a thousand answers cost less."""
    before = baseline.thousand_answers if baseline is not None else None
    after = candidate.thousand_answers
    return None if before is None or after is None else before - after


def _per_point(saved: float | None, verdict: Verdict | None) -> float | None:
    """Return it for a point of quality, where both fell."""
    points = 0.0 if verdict is None else verdict.total.loss_points
    return saved / points if saved is not None and saved > 0 and points > 0 else None
