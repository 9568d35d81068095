"""`tessera claims`: the table of all claims, or a claim with everything that decides it."""

import difflib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.cli.text import table
from tessera_lab.claims.claim import Claim, ClaimSet, read_claims
from tessera_lab.claims.record import read_results, run_claims
from tessera_lab.claims.text import (
    claimed_lines,
    condition,
    counts,
    figure_lines,
    format_figure,
    format_number,
    format_span,
)
from tessera_lab.claims.verdict import ClaimResult

_HEADS = ("ID", "CLAIM", "VERDICT", "OURS", "CLAIMED", "CONDITION")


def run(arguments: SimpleNamespace) -> Output:
    """Return the table, or one claim; CommandError for an unknown id."""
    claim_set = read_claims()
    ids = tuple(claim_set.by_id)
    if arguments.id is not None:
        if arguments.run:
            raise CommandError("write either an id or --run, which computes all claims")
        ids = (_known_id(arguments.id, claim_set),)
    if arguments.run or arguments.id is not None:
        results: Mapping[str, ClaimResult] = dict(run_claims(claim_set, ids))
    else:
        results = read_results()
    if arguments.output == "json":
        return Output.of_json(_json(claim_set, results))
    if arguments.id is not None:
        return Output.of_lines(claim_text(claim_set.by_id[ids[0]], results[ids[0]]))
    return Output.of_lines([*claims_table(claim_set, results), "", _summary(claim_set, results)])


def _known_id(text: str, claim_set: ClaimSet) -> str:
    ids = list(claim_set.by_id)
    if text.upper() in ids:
        return text.upper()
    similar = difflib.get_close_matches(text.upper(), ids, n=5, cutoff=0.6) or ids[:1] + ids[-1:]
    raise CommandError(
        f"no claim {text or repr(text)}; similar: {', '.join(sorted(similar))}; "
        f"tessera claims lists all from {ids[0]} to {ids[-1]}"
    )


def claims_table(claim_set: ClaimSet, results: Mapping[str, ClaimResult]) -> Iterator[str]:
    """Yield the lines of the table."""
    rows = [
        row
        for claim in claim_set.claims
        if (result := results.get(claim.id)) is not None
        for row in _rows(claim, result)
    ]
    return table(_HEADS, rows)


def _rows(claim: Claim, result: ClaimResult) -> Iterator[tuple[str, ...]]:
    """Yield a row for each figure; the first has what is said once."""
    figures = list(figure_lines(claim, result)) or ["-"]
    claimed = list(claimed_lines(claim)) or ["-"]
    head, last = (claim.id, claim.title, str(result.verdict)), condition(claim, result) or "-"
    for figure, promised in zip_longest(figures, claimed, fillvalue="-"):
        yield (*head, figure, promised, last)
        head, last = ("", "", ""), ""


def _summary(claim_set: ClaimSet, results: Mapping[str, ClaimResult]) -> str:
    numbers = counts(claim_set.by_id, results)
    return (
        f"{numbers['claims_met']} met, {numbers['claims_conditional']} only under a condition, "
        f"{numbers['claims_not_met']} not met, {numbers['claims_literature']} literature, "
        f"{numbers['claims_not_run']} not run. tessera claims ID shows one with its conditions."
    )


def claim_text(claim: Claim, result: ClaimResult) -> Iterator[str]:
    """Yield a claim with its conditions, figures and verdict."""
    yield f"{claim.id}  {claim.text}"
    yield f"Sources: {'; '.join(claim.sources)}"
    yield from (f"{head}: {text}" for head, text in _parts(claim) if text)
    yield f"Claimed: {', '.join(claimed_lines(claim)) or '-'}, tolerance {claim.tolerance:.0%}"
    yield f"Ours: {', '.join(figure_lines(claim, result)) or '-'} ({claim.kind})"
    if details := [f"{d.name} {format_figure(d.value, d.unit)}" for d in result.details]:
        yield f"Beside it: {', '.join(details)}"
    for mistake in claim.mistakes:
        wrong, right = mistake.wrong.rstrip("."), mistake.right.rstrip(".")
        yield f"Mistake in {mistake.source}: {wrong}. Right: {right}. {mistake.why}"
    yield from (f"Note: {note}" for note in claim.notes)
    yield from (f"Literature: {r.title}, {r.date}, {r.link}" for r in claim.references)
    yield f"Verdict: {result.verdict}{_verdict_suffix(claim, result)}"


def _parts(claim: Claim) -> Iterator[tuple[str, str | None]]:
    yield "Baseline", claim.baseline
    yield "Scenario", claim.scenario
    yield "Conditions", ", ".join(f"{name} {value}" for name, value in claim.conditions.items())
    if claim.vary is not None:
        vary = claim.vary
        span = format_span(vary.least, vary.most)
        yield "Varied", f"{vary.condition} ({vary.label}) from {span}"


def _verdict_suffix(claim: Claim, result: ClaimResult) -> str:
    if result.part is not None:
        figures = ", ".join(
            f"{claimed.name} {format_figure(result.part.figures[claimed.name], claimed.unit)}"
            for claimed in claim.figures
            if claimed.name in result.part.figures
        )
        nearest = f"{result.part.condition} {format_number(result.part.nearest)}"
        return f": {condition(claim, result)} (at {nearest}: {figures})"
    return f": {result.reason}" if result.reason else ""


def _json(claim_set: ClaimSet, results: Mapping[str, ClaimResult]) -> object:
    return {
        "claims": [
            {
                **claim.model_dump(mode="json", by_alias=True, exclude_none=True),
                "result": results[claim.id].model_dump(
                    mode="json", by_alias=True, exclude_none=True
                ),
            }
            for claim in claim_set.claims
            if claim.id in results
        ],
        "counts": dict(counts(claim_set.by_id, results)),
    }
