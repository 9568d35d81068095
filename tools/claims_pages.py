"""The pages of the claims, from `claims.json` and the recorded results."""

from collections.abc import Iterable, Iterator, Mapping

from tessera_lab.claims.claim import Claim, ClaimKind, VariedCondition, read_claims
from tessera_lab.claims.record import INT4_RECORD, read_results
from tessera_lab.claims.text import (
    claimed_lines,
    counts,
    figure_lines,
    format_span,
)
from tessera_lab.claims.verdict import ClaimResult

FOLDER = "docs/claims"
# The title of each page, and its claims in their order.
THEMES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "whole-stack.md": (
        "Claims about the whole stack",
        ("H01", "H02", "H03", "H04", "H05", "H36", "H37", "H39", "H44"),
    ),
    "batching.md": (
        "Claims about batching",
        ("H06", "H07", "H08", "H09", "H10", "H11", "H12", "H13", "H43"),
    ),
    "kv-cache.md": ("Claims about the KV cache", ("H14", "H15", "H16", "H17")),
    "quantization.md": ("Claims about quantization", ("H18", "H19", "H20", "H21", "H22")),
    "speculation.md": (
        "Claims about speculation, streaming and kernels",
        ("H23", "H24", "H38", "H45"),
    ),
    "small-models.md": (
        "Claims about small models and routing",
        ("H25", "H26", "H31", "H32", "H33", "H34"),
    ),
    "caches.md": (
        "Claims about caches and shorter prompts",
        ("H27", "H28", "H29", "H30", "H35"),
    ),
    "prices.md": (
        "Claims about hardware, prices and spending",
        ("H40", "H41", "H42", "H46", "H47", "H48", "H49", "H50"),
    ),
}
_NOTICE = "<!-- Generated from claims.json and figures.json by `make generate`. -->"
_HEAD = """\
# Claims about the cost of inference

{notice}

What articles and vendors promise, tried: fifty claims of five texts, each under conditions and with
a tolerance that were written before the code that computes its figures. {changed} were changed
after a first figure. Figures come from the [engine machine](../engine-machine.md), from sizing
and from dated prices. Only step times were compared with a GPU: a real vLLM 0.26 on one H100
decodes dense models within 3 % of them in 16 bits and 6 % in fp8, in 70 steps; [how far
off](../decisions/performance-model.md) windows, 4 bits and experts are. No claim ran on a GPU as a
whole, and the quality of answers is not measured.

Figures are of the stated conditions; in brackets is the varied one: where the claim holds, of what
was tried. At full load all requests wait from the start. A range is met within 10 % of its ends,
unless `no tolerance` is said. [`tessera claims H06`](../tasks/claims.md) computes a claim and
prints its conditions, sources, their mistakes and changes; `make claims` computes all.

| verdict | claims |
| --- | --- |
| `Met`: every figure is in the claimed range, over the whole span | {met} |
| `MetOnlyUnder` a condition, which is named | {conditional} |
| `NotMet` | {not_met} |
| `Literature`: cited, not computed | {literature} |
| `NotRun`: what it needs is not there | {not_run} |

{with_figure} have a figure, {simulated} from the engine machine, the others by arithmetic. A
figure above the range does not meet it either. H25, H27, H37 and H41 mostly restate what they take
in: `Met` says little there.

| claim | |
| --- | --- |"""
_INT4 = """\
## What 4-bit steps decide

{claims} are of weights of 4 bits on an A100. No kernel was measured there, so their share of the
bandwidth is a guess, that of 16 bits, which the only measurement contradicts: on an H100 Machete
reads weights at about half of the peak, where the guess has 84 %. Each says what becomes of it
with that kernel's shares on all GPUs (`make claims OPTIONS=--int4`): {turned} turn. What was mended
for windows, and for 4 bits on Hopper, turns none."""
_NO_QUALITY, _CHANGED = "Quality is not measured here.", "Changed after a first figure: "


def pages() -> dict[str, str]:
    """Return the index and a page for each theme, by path."""
    claims, results = read_claims().by_id, read_results()
    files = {f"{FOLDER}/index.md": _index(claims, results)}
    for page, (title, ids) in THEMES.items():
        lines = [f"# {title}", "", _NOTICE, "", "[All claims](index.md)"]
        for claim_id in ids:
            lines += _section(claims[claim_id], results[claim_id])
        files[f"{FOLDER}/{page}"] = "\n".join(lines) + "\n"
    return files


def _index(claims: Mapping[str, Claim], results: Mapping[str, ClaimResult]) -> str:
    numbers = {
        name.removeprefix("claims_"): number for name, number in counts(claims, results).items()
    }
    links = {
        claim_id: f"[{claim_id}]({page}#{claim_id.lower()})"
        for page, (_, ids) in THEMES.items()
        for claim_id in ids
    }
    rows = [
        f"| {links[claim_id]} {claim.title} | `{results[claim_id].verdict}` |"
        for claim_id, claim in claims.items()
    ]
    measured = read_results(INT4_RECORD)
    turned = [name for name in measured if measured[name].verdict is not results[name].verdict]
    int4 = _INT4.format(claims=_listed(measured), turned=_listed(turned))
    changed = [name for name in claims if any(_CHANGED in note for note in claims[name].notes)]
    head = _HEAD.format(notice=_NOTICE, changed=_listed(changed), **numbers)
    return "\n".join([head, *rows, "", int4]) + "\n"


def _listed(ids: Iterable[str]) -> str:
    *first, last = ids
    return f"{', '.join(first)} and {last}"


def _section(claim: Claim, result: ClaimResult) -> Iterator[str]:
    yield from ("", f"## {claim.id}", "", claim.text, "")
    yield f"{_verdict(claim, result)}{_measured(claim, result)}"
    if result.figures:
        how = "On the engine machine" if claim.kind is ClaimKind.SIMULATED else "By arithmetic"
        yield ""
        yield f"{how}: {_sentence(claim.scenario)} Against: {_sentence(claim.baseline)}"
    # The index says of all claims that quality is not measured, and which were changed.
    notes = (note.removesuffix(_NO_QUALITY).strip() for note in claim.notes)
    if notes := [note for note in notes if note and not note.startswith(_CHANGED)]:
        yield from ("", " ".join(notes))
    if claim.references:
        yield ""
        yield from (f"- [{each.title}]({each.link}), {each.date}" for each in claim.references)


def _verdict(claim: Claim, result: ClaimResult) -> str:
    """Return the verdict with its condition, and each figure beside the claimed range."""
    verdict = f"**{result.verdict}**"
    if result.reason is not None:
        return f"{verdict}: claimed {', '.join(claimed_lines(claim))}. {result.reason}"
    if not claim.figures:
        return f"{verdict}."
    pairs = zip(figure_lines(claim, result), claimed_lines(claim), claim.figures, strict=True)
    figures = "; ".join(
        f"{figure}, claimed {text.removeprefix(claimed.name).strip()}"
        for figure, text, claimed in pairs
    )
    span = "" if claim.vary is None else f" {_span(claim.vary, result)}"
    tolerance = "" if claim.tolerance else ", no tolerance"
    return f"{verdict}{span}: {figures}{tolerance}."


def _span(vary: VariedCondition, result: ClaimResult) -> str:
    """Return over which part of the span of the varied condition a claim holds."""
    tried = format_span(vary.least, vary.most)
    part = "" if result.part is None else f"{format_span(result.part.low, result.part.high)} of "
    return f"({vary.label} {part}{tried})"


def _measured(claim: Claim, result: ClaimResult) -> str:
    """Return what the only measurement of a 4-bit kernel would make of a claim."""
    measured = read_results(INT4_RECORD).get(claim.id)
    if measured is None:
        return ""
    guessed = tuple(figure_lines(claim, result))
    figures = "; ".join(text for text in figure_lines(claim, measured) if text not in guessed)
    text = f"{figures or 'the same figures'}, **{measured.verdict}**"
    if measured.part is not None and measured.part != result.part and claim.vary is not None:
        text += f" {_span(claim.vary, measured)}"
    return f" With the [measured kernel](index.md#what-4-bit-steps-decide): {text}."


def _sentence(text: str | None) -> str:
    return f"{(text or '').rstrip('.')}."
