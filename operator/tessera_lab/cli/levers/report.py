"""The report of `tessera levers`, as a table or JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.text import counted
from tessera.cli.numbers import format_seconds
from tessera.cli.output import Output
from tessera.cli.text import cell, table
from tessera.domain.routes.savings import Blend
from tessera_lab.cli.levers.scenario import LeverScenario
from tessera_lab.levers.advice import Advice
from tessera_lab.levers.figure import LadderFigure, MonthFigure, month_figure
from tessera_lab.levers.lever import LeverId, levers
from tessera_lab.levers.ranking import DRAWS, RankedLever

_CENT = 0.01
_LADDER_HEADS = (
    "LEVER",
    "NOW",
    "ALONE",
    "HERE",
    "LAST",
    "/MONTH",
    "/MTOK",
    "J/TOKEN",
    "TTFT",
    "TPOT",
    "NOTE",
)
_NEXT_HEADS = (
    *("LEVER", "SAVES/MONTH", "SHARE", "CONFIDENCE", "RISK", "EFFORT", "GATE", "TODAY", "PAYBACK"),
    "KEEPS ITS PLACE",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverReport:
    """A ladder, and what to do next."""

    scenario: LeverScenario
    ladder: LadderFigure
    advice: Advice
    routing: tuple[Blend, ...]
    """What a route to the small model would make of the prices of both; none without one."""


def output(report: LeverReport, form: str) -> Output:
    """Return the ladder as table or JSON."""
    return Output.of(form, _lines(report), partial(_body, report))


def _lines(report: LeverReport) -> Iterator[str]:
    """Yield the ladder, what to take next, and what limits the figures."""
    yield from [
        *_head(report),
        "",
        *table(_LADDER_HEADS, [*_ladder_rows(report)], _justified),
        "",
        *_sums(report),
        *_energy_changes(report),
        "",
        *_next(report),
        "",
        *_routing(report),
        *_limits(report),
    ]


def _head(report: LeverReport) -> Iterator[str]:
    scenario, present = report.scenario, month_figure(report.advice.present)
    trace, case, currency = scenario.trace, scenario.case, scenario.file.currency
    load = case.load
    yield (
        f"Trace {trace.name}: {counted(len(trace), 'request')} in {trace.seconds / 3600:.2f} h, on "
        f"average {load.input_tokens:.0f} input and {load.output_tokens:.0f} output tokens"
    )
    yield (
        f"InferenceService/{scenario.file.objects.service.ref}: P95 of TTFT "
        f"{format_seconds(case.objectives.ttft)}, of TPOT {format_seconds(case.objectives.tpot)}"
    )
    yield (
        f"Today: {present.setup}; replicas: {present.mean_replicas:.1f} on average, "
        f"{present.peak_replicas} at most; {present.per_month:,.2f} {currency} a month, "
        f"{present.per_million_tokens:.2f} per million output tokens; SLO "
        f"{'kept' if present.keeps_slo else 'missed'}"
    )


def _justified(text: str, width: int) -> str:
    return text.rjust(width) if text[:1].isdigit() or text == "-" else text.ljust(width)


def _ladder_rows(report: LeverReport) -> Iterator[tuple[str, ...]]:
    ladder, in_use = report.ladder, report.scenario.in_use
    yield ("plain vLLM", "", "", "", "", *_month_cells(ladder.baseline), ladder.baseline.setup)
    for rung in ladder.rungs:
        now = "in use" if rung.lever in in_use else "" if rung.offered else "not offered"
        note = rung.after.setup if rung.used and not rung.note else rung.note
        factors = (cell(factor, "{:.2f}") for factor in (rung.alone, rung.here, rung.last))
        months = _month_cells(rung.after) if rung.used else ("-",) * 5
        yield (rung.lever, now, *factors, *months, note)


def _month_cells(month: MonthFigure) -> tuple[str, ...]:
    return (
        f"{month.per_month:,.2f}",
        f"{month.per_million_tokens:.3f}",
        cell(month.joules_per_token, "{:.2f}"),
        format_seconds(month.ttft_p95),
        format_seconds(month.tpot_p95),
    )


def _sums(report: LeverReport) -> Iterator[str]:
    ladder = report.ladder
    baseline = ladder.baseline
    late = (
        "" if baseline.keeps_slo else f" (no SLO, P95 of TTFT {format_seconds(baseline.ttft_p95)})"
    )
    yield (
        f"All together cost {ladder.reached:.1f} times less than plain vLLM for the peak{late}; "
        f"the product of their factors alone is {ladder.product:.1f}"
    )
    is_routed = any(rung.used for rung in ladder.rungs if rung.lever == LeverId.ROUTING)
    routing = ", without routing" if is_routed else ""
    yield (
        f"With what Tessera offers{routing}: {ladder.reached_today:.1f} times, "
        f"{ladder.today.per_month:,.2f} {report.scenario.file.currency} a month"
    )


def _energy_changes(report: LeverReport) -> Iterator[str]:
    """Yield what each lever that is used changes of the energy of a token, on those before."""
    before, changes = report.ladder.baseline, list[str]()
    for rung in report.ladder.rungs:
        if not rung.used:
            continue
        after = rung.after
        if before.joules_per_token and after.joules_per_token:
            change = f"{after.joules_per_token / before.joules_per_token - 1:+.0%}"
            if change not in {"+0%", "-0%"}:
                changes.append(f"{rung.lever} {change}")
        before = after
    if changes:
        yield f"Energy of an output token, by loaded replicas alone: {', '.join(changes)}"


def _next(report: LeverReport) -> Iterator[str]:
    advice = report.advice
    rows = advice.ranking.rows
    if not rows:
        yield "No other lever saves anything here"
        return
    yield "Next, by saving x confidence / (risk x effort):"
    yield from table(_NEXT_HEADS, [_next_row(advice, each) for each in rows], _justified)
    stable, places = advice.ranking.stable, counted(len(rows), "place")
    yield (
        f"{stable} of {places} in this order hold in half of {DRAWS:,} draws in which confidence, "
        "risk and effort vary by 2"
    )
    if advice.ranking.is_noise:
        yield "The order is noise: choose by the savings"


def _next_row(advice: Advice, row: RankedLever) -> tuple[str, ...]:
    lever = levers()[row.lever]
    return (
        row.lever,
        f"{row.saving:,.2f}",
        f"{row.saving / advice.present.usd:.0%}",
        f"{lever.confidence:.1f}",
        lever.risk,
        lever.effort,
        "yes" if lever.gate else "no",
        "offered" if lever.offered else "not offered",
        lever.payback.after if lever.payback else "-",
        f"{row.stays:.0%}",
    )


def _routing(report: LeverReport) -> Iterator[str]:
    """Yield the prices of a route by the share of its tokens that the small model makes."""
    if report.routing:
        yield "A ModelRoute to the small model, both in full use on demand:"
        rows = [
            (f"{each.share:.0%}", f"{each.price:.3f}", cell(each.saved, "{:.0%}"))
            for each in report.routing
        ]
        yield from (*table(("SHARE", "/MTOK", "SAVES"), rows, _justified), "")


def _limits(report: LeverReport) -> Iterator[str]:
    advice, assumed = report.advice, report.scenario.case.assumptions
    if not advice.present.keeps_slo:
        yield "At no load of this trace a replica keeps the SLO: it is loaded as if users waited"
    for lever, saving in advice.savings.items():
        if saving < -_CENT:
            yield f"{lever} would cost {-saving:,.2f} more a month"
    for unknown in advice.unknown:
        yield f"Not computed: {unknown.lever} ({unknown.obstacle}): {unknown.message}"
    yield (
        f"Assumed: a response cache answers {assumed.hit_share:.0%}, a small model "
        f"{assumed.small_share:.0%}, batches {assumed.batch_share:.0%}; temperature "
        f"{assumed.temperature:g}; an hour of operation costs {assumed.engineer_hour:g}"
    )
    yield from report.scenario.notes


def _body(report: LeverReport) -> dict[str, Any]:
    """Return everything; money is per month, latencies are in seconds."""
    scenario, advice = report.scenario, report.advice
    return {
        "trace": {
            "name": scenario.trace.name,
            "requests": len(scenario.trace),
            "played": len(scenario.case.load.requests),
            "seconds": scenario.trace.seconds,
        },
        "service": str(scenario.file.objects.service.ref),
        "currency": scenario.file.currency,
        "assumptions": {
            to_camel(name): value for name, value in asdict(scenario.case.assumptions).items()
        },
        "present": _wire(month_figure(advice.present)),
        "inUse": {lever: round(worth, 2) for lever, worth in advice.worth.items()},
        "ladder": _wire(report.ladder),
        "next": [
            {
                **_wire(levers()[row.lever]),
                "saving": round(row.saving, 2),
                "score": round(row.score, 2),
                "keepsPlace": row.stays,
            }
            for row in advice.ranking.rows
        ],
        "routing": [each._asdict() for each in report.routing],
        "rankingIsNoise": advice.ranking.is_noise,
        "savings": {lever: round(saving, 2) for lever, saving in advice.savings.items()},
        "notComputed": [
            {"lever": each.lever, "reason": each.obstacle, "message": each.message}
            for each in advice.unknown
        ],
        "notes": list(scenario.notes),
    }


def _wire(figure: Any) -> dict[str, Any]:
    body: dict[str, Any] = figure.model_dump(mode="json", by_alias=True)
    return body
