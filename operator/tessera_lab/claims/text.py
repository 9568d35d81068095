"""Claims and results in words, for the terminal and the pages."""

from collections.abc import Iterator, Mapping

from tessera_lab.claims.claim import Claim, ClaimedRange, ClaimKind
from tessera_lab.claims.verdict import (
    ClaimResult,
    ClaimVerdict,
    RangePosition,
    position,
)


def format_number(value: float) -> str:
    """Return a number to three digits, with all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_figure(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    if unit == "share":
        return f"{100 * value:.3g} %"
    number = format_number(value)
    return f"{number}x" if unit == "x" else f"{number} {unit}".rstrip()


def format_range(claimed: ClaimedRange) -> str:
    """Return what is claimed: `10 to 25x`, `at least 2x` or `at most 5 %`."""
    low, high, unit = claimed.low, claimed.high, claimed.unit
    if low is None:
        return f"at most {format_figure(high or 0.0, unit)}"
    if high is None:
        return f"at least {format_figure(low, unit)}"
    scale = 100 if unit == "share" else 1
    begin = "" if low == high else f"{format_number(scale * low)} to "
    return begin + format_figure(high, unit)


def format_span(low: float, high: float) -> str:
    """Return `8 to 52`, or one number where both are the same to three digits."""
    begin, end = format_number(low), format_number(high)
    return begin if begin == end else f"{begin} to {end}"


def figure_lines(claim: Claim, result: ClaimResult) -> Iterator[str]:
    """Yield each figure with its name, if there are several, and where it lies."""
    for claimed in claim.figures:
        figure = result.figures.get(claimed.name)
        if figure is None:
            continue
        name = f"{claimed.name} " if len(claim.figures) > 1 else ""
        place = position(claimed, claim.tolerance, figure)
        suffix = "" if place is RangePosition.WITHIN else f" ({place})"
        yield f"{name}{format_figure(figure, claimed.unit)}{suffix}"


def claimed_lines(claim: Claim) -> Iterator[str]:
    """Yield each claimed range, with its name if there are several."""
    for claimed in claim.figures:
        name = f"{claimed.name} " if len(claim.figures) > 1 else ""
        yield f"{name}{format_range(claimed)}"


def condition(claim: Claim, result: ClaimResult) -> str:
    """Return the decisive condition in a few words."""
    if result.reason is not None:
        return result.reason
    if claim.vary is None:
        return ""
    if result.part is not None:
        return f"only: {claim.vary.label} {format_span(result.part.low, result.part.high)}"
    return f"{claim.vary.label} {format_span(claim.vary.least, claim.vary.most)}"


def counts(claims: Mapping[str, Claim], results: Mapping[str, ClaimResult]) -> Mapping[str, int]:
    """Return how many claims have a figure, and how many each verdict."""
    figured = [claims[name] for name, result in results.items() if result.figures]
    verdicts = [result.verdict for result in results.values()]
    return {
        "claims": len(results),
        "claims_with_figure": len(figured),
        "claims_simulated": sum(claim.kind is ClaimKind.SIMULATED for claim in figured),
        "claims_met": verdicts.count(ClaimVerdict.MET),
        "claims_conditional": verdicts.count(ClaimVerdict.MET_ONLY_UNDER),
        "claims_not_met": verdicts.count(ClaimVerdict.NOT_MET),
        "claims_literature": verdicts.count(ClaimVerdict.LITERATURE),
        "claims_not_run": verdicts.count(ClaimVerdict.NOT_RUN),
    }
