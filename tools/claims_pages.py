"""The pages of the claims, from `claims.json` and the recorded results."""

from collections.abc import Iterator, Mapping

from tessera_lab.claims.claim import (
    Claim,
    ClaimKind,
    ClaimSet,
    VariedCondition,
    read_claims,
)
from tessera_lab.claims.record import INT4_RECORD, read_results
from tessera_lab.claims.text import (
    claimed_lines,
    condition,
    counts,
    figure_lines,
    format_figure,
    format_number,
    format_span,
)
from tessera_lab.claims.verdict import ClaimResult, ClaimVerdict

FOLDER = "docs/claims"
_NOTICE = "<!-- Generated from claims.json and figures.json by `make generate`. -->"
_HEAD = """\
# Claims about the cost of inference

{notice}

What articles and vendors promise, tried: fifty claims of five texts, each under conditions and with
a tolerance that were written before the code that computes its figures. What was changed later is
noted with the claim. Figures come from the [engine machine](../engine-machine.md), from sizing and
from dated prices. Of these, step times were compared with a GPU: a real vLLM 0.26 on one H100
decodes dense models within 3 % of them in 16 bits and 6 % in fp8, in 70 steps. Windows, 4 bits and
experts were further off, and [what is mended](../decisions/performance-model.md) says how far they
are now. No claim ran on a GPU as a whole, and the quality of answers is not measured at
all. [Check claims](../tasks/claims.md) says how to compute them: `make claims`, or
`tessera claims H06` for one.

| verdict | claims |
| --- | --- |
| met: every figure is in the claimed range, over the whole span of the varied condition | {met} |
| met only under a condition, which is named | {conditional} |
| not met | {not_met} |
| literature: cited, not computed | {literature} |
| not run: what it needs is not there | {not_run} |

{with_figure} claims have a figure, {simulated} of them from the engine machine, the others by
arithmetic. A figure above the claimed range does not meet it either: a plan that counts on the
range would be wrong."""
_SECTIONS: Mapping[ClaimVerdict, str] = {
    ClaimVerdict.MET: "Met",
    ClaimVerdict.MET_ONLY_UNDER: "Met only under a condition",
    ClaimVerdict.NOT_MET: "Not met",
    ClaimVerdict.LITERATURE: "Literature",
    ClaimVerdict.NOT_RUN: "Not run",
}


_INT4 = """\
## What 4-bit steps decide

These claims are of weights of 4 bits on an A100. No kernel was measured there, so their share of
the bandwidth is a guess, that of 16 bits, which the only measurement contradicts: on an H100
Machete reads weights at about half of the peak, where the guess has 84 %. With its shares on all
GPUs (`make claims OPTIONS=--int4`) two verdicts turn. What was mended for windows, and for 4 bits
on Hopper, turns none.

| claim | by the guess | by the measured kernel | its verdict |
| --- | --- | --- | --- |"""


def pages() -> dict[str, str]:
    """Return the index and a page for each claim, by path."""
    claim_set, results = read_claims(), read_results()
    files = {f"{FOLDER}/index.md": _index(claim_set, results)}
    for claim in claim_set.claims:
        files[f"{FOLDER}/{_file(claim)}"] = "\n".join(_page(claim, results[claim.id])) + "\n"
    return files


def _file(claim: Claim) -> str:
    return f"{claim.id.lower()}.md"


def _index(claim_set: ClaimSet, results: Mapping[str, ClaimResult]) -> str:
    numbers = counts(claim_set.by_id, results)
    named = {name.removeprefix("claims_"): number for name, number in numbers.items()}
    lines = [_HEAD.format(notice=_NOTICE, **named)]
    for verdict, title in _SECTIONS.items():
        claims = [claim for claim in claim_set.claims if results[claim.id].verdict is verdict]
        lines += ["", f"## {title}", "", "| claim | ours | claimed | condition |"]
        lines += [
            "| --- | --- | --- | --- |",
            *(_row(claim, results[claim.id]) for claim in claims),
        ]
    lines += ["", _INT4, *_int4_rows(claim_set, results)]
    return "\n".join(lines) + "\n"


def _int4_rows(claim_set: ClaimSet, results: Mapping[str, ClaimResult]) -> Iterator[str]:
    for claim_id, result in read_results(INT4_RECORD).items():
        claim, guessed = claim_set.by_id[claim_id], results[claim_id]
        cells = ("<br>".join(figure_lines(claim, each)) for each in (guessed, result))
        before, after = (_SECTIONS[each.verdict].lower() for each in (guessed, result))
        verdict = f"stays {before}" if before == after else f"**{before} becomes {after}**"
        if before == after and guessed.part != result.part:
            spans = (condition(claim, each).removeprefix("only: ") for each in (result, guessed))
            verdict += f": {', before '.join(spans)}"
        yield f"| [{claim.id}]({_file(claim)}) {claim.title} | {' | '.join(cells)} | {verdict} |"


def _row(claim: Claim, result: ClaimResult) -> str:
    cells = (
        f"[{claim.id}]({_file(claim)}) {claim.title}",
        "<br>".join(figure_lines(claim, result)),
        "<br>".join(claimed_lines(claim)),
        condition(claim, result),
    )
    return f"| {' | '.join(cells)} |"


def _page(claim: Claim, result: ClaimResult) -> Iterator[str]:
    yield from (f"# {claim.id}: {claim.title}", "", _NOTICE, "", claim.text, "")
    verdict = _SECTIONS[result.verdict].lower()
    yield f"Claimed in {'; '.join(claim.sources)}. Verdict: **{verdict}**."
    if measured := read_results(INT4_RECORD).get(claim.id):
        yield from ("", _guess(claim, measured))
    if claim.figures:
        yield from _figures(claim, result)
        yield from _arithmetic(claim, result)
    if claim.mistakes:
        yield from ("", "## Mistakes of the sources", "")
        yield from ("| source | figure of the source | right | why |", "| --- | --- | --- | --- |")
        yield from (f"| {m.source} | {m.wrong} | {m.right} | {m.why} |" for m in claim.mistakes)
    if claim.references:
        yield from ("", "## Literature", "")
        yield from (f"- [{r.title}]({r.link}), {r.date}" for r in claim.references)
    if claim.notes:
        yield ""
        yield from claim.notes
    if claim.figures:
        yield from ("", "## Compute it", "", "```sh", f"tessera claims {claim.id}", "```")
    yield from ("", "[All claims](index.md)")


def _guess(claim: Claim, measured: ClaimResult) -> str:
    """Return what the only measurement of a 4-bit kernel would make of a claim."""
    return (
        "No kernel for weights of 4 bits was measured on this GPU: their share of its bandwidth is "
        "a guess, which the only measurement contradicts. With the shares of Machete on an H100 "
        f"the verdict is {_SECTIONS[measured.verdict].lower()}: "
        f"{'; '.join(figure_lines(claim, measured))}. [What 4-bit steps "
        "decide](index.md#what-4-bit-steps-decide)."
    )


def _figures(claim: Claim, result: ClaimResult) -> Iterator[str]:
    yield from ("", "| figure | ours | claimed |", "| --- | --- | --- |")
    lines = zip(claim.figures, claimed_lines(claim), strict=True)
    for claimed, text in lines:
        figure = result.figures.get(claimed.name)
        shown = "" if figure is None else format_figure(figure, claimed.unit)
        yield f"| {claimed.name} | {shown} | {text.removeprefix(claimed.name).strip()} |"
    yield ""
    if result.reason is not None:
        yield f"Not run: {result.reason}"
        return
    if claim.vary is not None:
        yield _varied(claim.vary, claim, result)
    if claim.tolerance:
        yield f"A range is met within {claim.tolerance:.0%} of its ends."


def _varied(vary: VariedCondition, claim: Claim, result: ClaimResult) -> str:
    tried = f"`{vary.condition}`, {vary.label}, from {format_span(vary.least, vary.most)}"
    if result.verdict is ClaimVerdict.MET:
        return f"Tried with {tried}: it holds everywhere."
    if result.part is None:
        return f"Tried with {tried}: it holds nowhere."
    units = {claimed.name: claimed.unit for claimed in claim.figures}
    figures = ", ".join(
        f"{name} {format_figure(figure, units[name])}"
        for name, figure in result.part.figures.items()
    )
    return (
        f"Tried with {tried}: it holds only with {format_span(result.part.low, result.part.high)}. "
        f"At {format_number(result.part.nearest)}: {figures}."
    )


def _arithmetic(claim: Claim, result: ClaimResult) -> Iterator[str]:
    how = "on the engine machine" if claim.kind is ClaimKind.SIMULATED else "by arithmetic"
    yield from ("", "## What is computed", "", f"{claim.scenario}", "")
    if result.figures:
        yield f"Computed {how}."
    yield f"Compared with: {claim.baseline}."
    if result.details:
        yield from ("", "| beside it | |", "| --- | --- |")
        yield from (f"| {d.name} | {format_figure(d.value, d.unit)} |" for d in result.details)
    yield from ("", "## Conditions", "", "| condition | value |", "| --- | --- |")
    for name, value in claim.conditions.items():
        varied = claim.vary is not None and claim.vary.condition == name
        suffix = ", varied" if varied else ""
        text = value if isinstance(value, str) else f"{value:,}"
        yield f"| `{name}` | {text}{suffix} |"
