"""The page of the ladders and their picture, from the recorded figures and the levers' data."""

from collections.abc import Iterator

from ladders import committed
from tessera.api.service_class import BUILT_IN_CLASSES
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.figure import LadderFigure, MonthFigure, RungFigure
from tessera_lab.levers.lever import Lever, LeverId, SavingRange, levers, source_orders
from tessera_lab.levers.picture import draw_ladders
from tessera_lab.levers.published import BASELINE_GPU, MODELS, REQUESTS_PER_MINUTE, SWING
from tessera_lab.levers.replica_rate import MOST_USE
from tessera_lab.levers.setups import DRAFT_TOKENS, STATIC_BATCH

PAGE, PICTURE = "docs/ladders.md", "docs/figures/levers.svg"
_TITLE = "# What each lever brings"


def picture() -> str:
    return draw_ladders(committed(), columns=2)


def page() -> str:
    """Return the page."""
    figures = committed()
    lines = [_TITLE, "", _INTRODUCTION, "", *_conditions(), "", *_summary(figures)]
    for figure in figures:
        lines += ["", f"## {figure.name}", "", *_ladder(figure)]
    lines += ["", "## Orders of the sources", "", *_orders(figures)]
    lines += ["", "## The levers", "", *_levers()]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
Vendors and articles promise a factor for each lever, and the factors multiply to hundreds. Here is
what they bring together, on the [engine machine](engine-machine.md) that is [compared with
vLLM](compared-with-vllm.md): each lever alone, in order (here), and taken out of the whole at the
end (last). `make levers` computes it in seconds; [`tessera levers`](tasks/levers.md) computes it
for your own load. Nothing here was measured on a GPU.

<img src="figures/levers.svg" style="background: white" alt="For three loads on a model of 8B and
one of 70B: how many times less a million output tokens cost after each lever, with all, and if
single factors multiplied.">"""


def _conditions() -> Iterator[str]:
    assumed, slo = LeverAssumptions(), BUILT_IN_CLASSES.standard
    models = "; ".join(
        f"{size}: `{each.name}` on {each.gpus}x {BASELINE_GPU}, drafts by `{each.draft}`, simple "
        f"requests to `{each.small}`"
        for size, each in MODELS.items()
    )
    yield (
        f"- **Baseline**: static batches of {STATIC_BATCH}, a contiguous KV cache for 8,192 tokens "
        "of each request, 16 bits, a fleet for the peak, all on demand. It keeps no SLO: its users "
        "wait as the tables say, so it is not in use. Every engine today has continuous batching "
        "and a paged KV cache, and the last column begins there."
    )
    yield f"- **Models**: {models}."
    yield (
        "- **Loads**: chat has a system prompt of 200 tokens before 10 to 2,000, and 10 to 2,000 "
        "out, log-normal; rag 2,000 in, of which all share 1,200, and 400 out; code the lengths of "
        "the Azure code trace, without shared prefixes."
    )
    yield (
        f"- **Demand**: {REQUESTS_PER_MINUTE:,} requests per minute over a day (`course` L3) that "
        f"is lowest at {1 - SWING:.1f} and highest at {1 + SWING:.1f} of its mean."
    )
    yield (
        f"- **A replica** carries at most {MOST_USE:.0%} of what it computes while all requests "
        "wait, less where P95 of TTFT or TPOT would be above what class `Standard` promises: "
        f"{slo.ttft_p95.total_seconds():g} s and {slo.itl_p95.total_seconds() * 1e3:.0f} ms. "
        "Its scheduler limits are those that the operator sets, or those of the engine if it "
        "carries more with them."
    )
    yield (
        "- **Prices**: those of AWS that `tessera size` has; reserved and spot from the set "
        "`aws-2026`, else 0.60 and 0.30 of the price on demand."
    )
    yield (
        f"- **Assumed**: a response cache answers {assumed.hit_share:.0%} (`course` L9), a small "
        f"model {assumed.small_share:.0%} (`engineering` L560), batches "
        f"{assumed.batch_share:.0%}, {assumed.wasted:.0%} of the work on spot nodes is lost, the "
        f"temperature is {assumed.temperature:g}, of {DRAFT_TOKENS} drafted tokens. An hour of "
        f"operation costs {assumed.engineer_hour:g} USD; no source has the last four."
    )
    yield (
        "- **Energy** of an output token is that of a replica under its load, by the "
        "[model of `tessera simulate`](tasks/simulate.md#energy); what idle replicas draw is not "
        "in it."
    )
    yield (
        "- **Answers**: quantization, caches of responses and routing change them. How much is not "
        "measured here."
    )


def _summary(figures: list[LadderFigure]) -> Iterator[str]:
    yield (
        "| | baseline, USD per million output tokens | its P95 TTFT | all levers | times less | "
        "product of single factors | times less with Tessera today | the same, from continuous "
        "batching with a paged KV cache on |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for each in figures:
        base, engine = each.baseline, _engine_alone(each)
        today = engine.per_month / each.today.per_month
        yield (
            f"| {each.name} | {base.per_million_tokens:.2f} | {base.ttft_p95:.2f} s | "
            f"{each.rungs[-1].after.per_million_tokens:.2f} | {each.reached:.0f} | "
            f"{each.product:.0f} | {each.reached_today:.0f} | {today:.1f} |"
        )
    missing = [f"{each.title.lower()}" for each in levers().values() if not each.offered]
    yield from ("", f"Not offered today: {', '.join(missing)}.")


def _engine_alone(figure: LadderFigure) -> MonthFigure:
    """Return what an engine costs without any lever that is not its default."""
    own = (LeverId.CONTINUOUS_BATCHING, LeverId.PAGING)
    used = [rung.after for rung in figure.rungs if rung.lever in own and rung.used]
    return (figure.baseline, *used)[-1]


def _ladder(figure: LadderFigure) -> Iterator[str]:
    yield (
        "| lever | alone | here | last | USD/month | USD/MTOK | J/token | P95 TTFT | P95 TPOT | "
        "replica, or why not |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    yield f"| baseline | | | | {_month(figure.baseline)} | {figure.baseline.setup} |"
    for rung in figure.rungs:
        mark = "" if rung.offered else " (not offered)"
        months = _month(rung.after) if rung.used else " | | | | "
        why = f"{rung.after.setup}{': ' if rung.note else ''}" if rung.used else ""
        yield f"| {rung.title}{mark} | {_factors(rung)} | {months} | {why}{rung.note} |"


def _factors(rung: RungFigure) -> str:
    return " | ".join(
        "" if each is None else f"{each:.2f}" for each in (rung.alone, rung.here, rung.last)
    )


def _month(month: MonthFigure) -> str:
    joules = "" if month.joules_per_token is None else f"{month.joules_per_token:.2f}"
    return (
        f"{month.per_month:,.0f} | {month.per_million_tokens:.3f} | {joules} | "
        f"{month.ttft_p95:.2f} s | {month.tpot_p95 * 1e3:.0f} ms"
    )


def _orders(figures: list[LadderFigure]) -> Iterator[str]:
    titles = {lever.id: lever.title for lever in levers().values()}
    yield (
        "How many times less than the baseline after each step, in the orders in which the sources "
        "apply levers. Each comes with those that it needs."
    )
    for order in source_orders():
        yield ""
        steps = [titles[lever] for lever in order.levers]
        yield f"| {order.source} | {' | '.join(steps)} |"
        yield f"| --- |{' --- |' * len(steps)}"
        for figure in figures:
            months = figure.orders[order.id]
            cells = (
                f"{figure.baseline.per_month / months[lever]:.1f}" if lever in months else ""
                for lever in order.levers
            )
            yield f"| {figure.name} | {' | '.join(cells)} |"


def _levers() -> Iterator[str]:
    yield (
        "| lever | layer | effort | risk | changes answers | promised | alone, in these ladders | "
        "paid back after | hours a month | today |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for lever in levers().values():
        payback = f"{lever.payback.after} (`{lever.payback.source}`)" if lever.payback else ""
        yield (
            f"| {lever.title} | {lever.layer} | {lever.effort} | {lever.risk} | "
            f"{'yes' if lever.gate else 'no'} | {_promised(lever)} | {_range(lever.ours)} | "
            f"{payback} | {lever.operation_hours:g} | {lever.today} |"
        )


def _promised(lever: Lever) -> str:
    if lever.claimed is None:
        return ""
    note = f", {lever.claimed.note}" if lever.claimed.note else ""
    return f"{_range(lever.claimed)} (`{lever.claimed.source}`{note})"


def _range(savings: SavingRange | None) -> str:
    if savings is None:
        return "not computed"
    low, high = f"{savings.low:.0%}", f"{savings.high:.0%}"
    return low if low == high else f"{low} to {high}"
