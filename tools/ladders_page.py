"""The pages of the ladders and their picture, from the recorded figures and the levers' data."""

from collections.abc import Iterator, Sequence

from ladders import committed
from tessera.api.service_class import BUILT_IN_CLASSES
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.figure import LadderFigure
from tessera_lab.levers.lever import Lever, LeverId, SavingRange, levers
from tessera_lab.levers.picture import draw_ladders, draw_savings
from tessera_lab.levers.published import (
    BASELINE_GPU,
    LOADS,
    MODELS,
    REQUESTS_PER_MINUTE,
    SMALL_GPU,
    SMALL_MODELS,
    SMALL_OTHER_GPUS,
    SMALL_RATES,
    SWING,
)
from tessera_lab.levers.replica_rate import MOST_USE
from tessera_lab.levers.setups import DRAFT_TOKENS, STATIC_BATCH

PAGE, PICTURE = "docs/ladders.md", "docs/figures/levers.svg"
HISTORY_PAGE = "docs/ladders-history.md"
SAVINGS_PICTURE, SHORT_PAGE = "docs/figures/savings.svg", "README.md"
_TITLE = "# What each lever brings"


def picture() -> str:
    return draw_ladders(committed().ladders)


def savings_picture() -> str:
    """Return what Tessera saves, in the figures of the short table."""
    figures = committed().ladders
    return draw_savings(
        [
            (each.name.replace(", ", " "), each.reached_today, _beyond_prefix_cache(each))
            for each in figures
        ]
    )


def page() -> str:
    """Return the page."""
    figures = committed().ladders
    lines = [_TITLE, "", _INTRODUCTION, "", *_summary(figures), "", _PICTURE]
    lines += ["", "## How it is computed", "", *_conditions()]
    lines += ["", "## Each lever in order", "", *_here(figures)]
    lines += ["", "## Replicas and latency", "", *_months(figures)]
    lines += ["", "## Many small services", "", *_services()]
    lines += ["", "## The levers", "", *_levers()]
    return "\n".join(lines) + "\n"


def short_table() -> str:
    """Return what Tessera saves, in two rows."""
    figures = committed().ladders
    rows = (
        ("", [each.name.replace(", ", " ") for each in figures]),
        ("---", ["---"] * len(figures)),
        ("than plain vLLM", [f"**{each.reached_today:.1f}**" for each in figures]),
        (
            "than vLLM with its prefix cache, which it uses by default",
            [f"{_beyond_prefix_cache(each):.1f}" for each in figures],
        ),
    )
    table = "\n".join(f"| {label} | {' | '.join(cells)} |" for label, cells in rows)
    return f"{table}\n\n{_small_services()}\n"


def savings() -> str:
    """Return the picture of what Tessera saves, whose figures can be read without it too."""
    words = "; ".join(
        f"{each.name} {each.reached_today:.1f}, {_beyond_prefix_cache(each):.1f} than with its "
        "prefix cache"
        for each in committed().ladders
    )
    return (
        f'<img class="picture" src="figures/savings.svg" width="540" alt="Times less than plain '
        f'vLLM: {words}.">\n\n{_small_services()}\n'
    )


def _small_services() -> str:
    recorded = committed()
    first, last = recorded.small_services[0], recorded.small_services[-1]
    times = [first.per_month / each.per_month for each in (last, recorded.without_slices)]
    return (
        f"{first.peak_gpus} small services cost {times[0]:.1f} times less on MIG slices "
        f"than on a GPU each, and {times[1]:.1f} times less with all but slices."
    )


def history_page() -> str:
    """Return the page of what other texts count from."""
    recorded = committed()
    lines = [
        "# Static batches, for history",
        "",
        f"Engines once ran batches of {STATIC_BATCH} requests until the longest answer ended, in "
        "slots of 8,192 tokens of KV cache. Texts that promise factors of ten to hundreds count "
        "from them, on a fleet for the peak and on demand. Users wait as long as the table says, "
        "so no SLO holds, and [the ladders](ladders.md) begin at plain vLLM. `make levers` "
        "computes this table too. What batching and paging bring alone is in the claims [H05 to "
        "H16](claims/index.md).",
        "",
        "| | static batches, USD per million output tokens | P95 TTFT | times plain vLLM | times "
        "Tessera today | times all levers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in recorded.ladders:
        static = recorded.static_batches[each.name]
        months = (each.baseline, each.today, each.rungs[-1].after)
        times = " | ".join(f"{static.per_month / month.per_month:.1f}" for month in months)
        lines.append(
            f"| {each.name} | {static.per_million_tokens:.2f} | {static.ttft_p95:.1f} s | {times} |"
        )
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
What the levers bring together, on the [engine machine](engine-machine.md) that is [compared with
vLLM](compared-with-vllm.md). `make levers` computes it in a minute;
[`tessera levers`](tasks/levers.md) does so for your own load. Dollars follow from computed step
times. A real vLLM 0.26 on one H100 decodes dense models within 3 % of these in 16 bits and 6 % in
fp8, in 70 steps; 4 bits were up to 31 % off, and [what is mended](decisions/performance-model.md)
says how far they are now. No fleet of these ladders ran on GPUs."""
_PICTURE = """\
<img src="figures/levers.svg" alt="For three loads on a model of 8B and
one of 70B: how many times less than with plain vLLM a million output tokens cost after each lever,
with all, and if single factors multiplied.">"""


def _conditions() -> Iterator[str]:
    assumed, slo = LeverAssumptions(), BUILT_IN_CLASSES.standard
    models = "; ".join(
        f"{size}: `{each.name}` on {each.gpus}x {BASELINE_GPU}, drafts by `{each.draft}`, simple "
        f"requests to `{each.small}`"
        for size, each in MODELS.items()
    )
    yield (
        "- **Baseline**: plain vLLM in 16 bits, which batches continuously and pages its KV cache, "
        "on a fleet for the peak, all on demand. Scheduler limits are chosen as for every row, "
        "which flatters it. Its prefix cache, which vLLM uses by default, is a lever here; the "
        "last column above counts it to the baseline. Others count from [static "
        "batches](ladders-history.md)."
    )
    yield f"- **Models**: {models}."
    yield (
        "- **Loads**: chat has a system prompt of 200 tokens before 10 to 2,000, and 10 to 2,000 "
        "out, log-normal; rag 2,000 in, of which all share 1,200, and 400 out; code the lengths of "
        "the Azure code trace, without shared prefixes."
    )
    yield (
        f"- **Demand**: {REQUESTS_PER_MINUTE:,} requests per minute over a day, from "
        f"{1 - SWING:.1f} to {1 + SWING:.1f} of it."
    )
    yield (
        f"- **A replica** carries at most {MOST_USE:.0%} of its full load, less where P95 of TTFT "
        "or TPOT would be above the SLO of class `Standard`, "
        f"{slo.ttft_p95.total_seconds():g} s and {slo.itl_p95.total_seconds() * 1e3:.0f} ms."
    )
    yield (
        "- **Prices**: those of AWS in `tessera size`; reserved and spot from the set `aws-2026`, "
        "else 0.60 and 0.30 of on demand. An hour of operation costs "
        f"{assumed.engineer_hour:g} USD."
    )
    yield (
        f"- **Assumed**: a response cache answers {assumed.hit_share:.0%}, a small model "
        f"{assumed.small_share:.0%}, batches are {assumed.batch_share:.0%}, "
        f"{assumed.wasted:.0%} of the work on spot nodes is lost, the temperature is "
        f"{assumed.temperature:g} with {DRAFT_TOKENS} drafted tokens."
    )
    yield (
        "- **Energy** is that of replicas under their load by the [model of "
        "`tessera simulate`](tasks/simulate.md#energy), without idle ones."
    )
    yield (
        "- **Answers**: quantization, response caches and routing change them; how much is not "
        "measured."
    )


def _summary(figures: Sequence[LadderFigure]) -> Iterator[str]:
    yield (
        "| USD per million output tokens | plain vLLM | Tessera today | **times less** | all "
        "levers | times less | product of single factors | Tessera today, times less than vLLM "
        "with its prefix cache |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for each in figures:
        yield (
            f"| {each.name} | {each.baseline.per_million_tokens:.2f} | "
            f"{each.today.per_million_tokens:.2f} | **{each.reached_today:.1f}** | "
            f"{each.rungs[-1].after.per_million_tokens:.2f} | {each.reached:.1f} | "
            f"{each.product:.1f} | {_beyond_prefix_cache(each):.1f} |"
        )
    yield ""
    yield (
        f"Of Tessera's factor, scaling is {_range_here(figures, LeverId.SCALING)}, reservations "
        f"{_range_here(figures, LeverId.PRICE_MIX)}, fp8 "
        f"{_range_here(figures, LeverId.QUANTIZATION)}. The first two an HPA and a contract bring "
        "as well."
    )
    missing = [f"{each.title.lower()}" for each in levers().values() if not each.offered]
    yield from (
        "",
        f"Not offered today: {', '.join(missing)}. Tessera today is without routing, whose share "
        "is a guess.",
    )


def _beyond_prefix_cache(figure: LadderFigure) -> float:
    """Return how many times less Tessera costs than plain vLLM with its prefix cache."""
    rung = next(rung for rung in figure.rungs if rung.lever == LeverId.PREFIX_CACHE)
    return figure.reached_today / (rung.alone or 1.0)


def _range_here(figures: Sequence[LadderFigure], lever: LeverId) -> str:
    """Return the range of what a lever brings on those before it, where it is used."""
    factors = [
        rung.here
        for figure in figures
        for rung in figure.rungs
        if rung.lever == lever and rung.used and rung.here
    ]
    return f"{min(factors):.2f} to {max(factors):.2f}"


def _here(figures: Sequence[LadderFigure]) -> Iterator[str]:
    yield (
        "How many times less tokens cost with a lever than with those above it. Below 1 it costs "
        "more and is left out. `figures/levers.json` also has each alone, taken out of the whole, "
        "the month after it, and the orders in which sources apply them."
    )
    yield from ("", f"| lever | {' | '.join(each.name for each in figures)} |")
    yield f"| --- |{' --- |' * len(figures)}"
    for rungs in zip(*(each.rungs for each in figures), strict=True):
        mark = "" if rungs[0].offered else " (not offered)"
        cells = ("" if rung.here is None else f"{rung.here:.2f}" for rung in rungs)
        yield f"| {rungs[0].title}{mark} | {' | '.join(cells)} |"
    whole = " | ".join(f"**{each.reached:.1f}**" for each in figures)
    yield f"| **all** | {whole} |"
    reasons: dict[str, list[str]] = {}
    for figure in figures:
        for rung in figure.rungs:
            if rung.alone is None:
                reasons.setdefault(f"{rung.title}: {rung.note}", []).append(figure.name)
    yield from ("", *(f"- {reason} ({'; '.join(names)})" for reason, names in reasons.items()))


def _months(figures: Sequence[LadderFigure]) -> Iterator[str]:
    yield "With plain vLLM and with Tessera today."
    yield ""
    yield "| | USD/month | J/token | P95 TTFT | P95 TPOT | replica |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for figure in figures:
        months = (figure.baseline, figure.today)
        cells = (
            ", ".join(f"{each.per_month:,.0f}" for each in months),
            ", ".join(f"{each.joules_per_token or 0:.2f}" for each in months),
            ", ".join(f"{each.ttft_p95:.2f}" for each in months) + " s",
            ", ".join(f"{each.tpot_p95 * 1e3:.0f}" for each in months) + " ms",
            "; ".join(each.setup for each in months),
        )
        yield f"| {figure.name} | {' | '.join(cells)} |"


def _services() -> Iterator[str]:
    recorded = committed()
    rungs, whole = recorded.small_services, recorded.without_slices
    models = ", ".join(f"`{each}`" for each in SMALL_MODELS)
    rates = ", ".join(map(str, SMALL_RATES))
    count = len(SMALL_MODELS) * len(LOADS) * len(SMALL_RATES)
    yield (
        "A model that fills its GPUs gains nothing by slices. Their case is many services that "
        f"each need a part of a GPU: {count} of them, {models} with the "
        f"loads chat, rag and code at {rates} requests per minute on average. Days peak in three "
        "regions, eight hours apart, and a quarter of each has no request. All keep the SLO of "
        "class `Standard`. Slices and their layouts are those that `tessera plan` takes."
    )
    yield from ("", "| step | here | times less | USD/month | GPUs, mean | GPUs, peak |")
    yield "| --- | --- | --- | --- | --- | --- |"
    for before, rung in zip((rungs[0], *rungs), (*rungs, whole), strict=True):
        yield (
            f"| {rung.title} | {before.per_month / rung.per_month:.2f} | "
            f"{rungs[0].per_month / rung.per_month:.2f} | {rung.per_month:,.0f} | "
            f"{rung.mean_gpus:.1f} | {rung.peak_gpus} |"
        )
    others = " or ".join(f"`{each}`" for each in SMALL_OTHER_GPUS)
    yield (
        f"\nThe first step has whole GPUs of `{SMALL_GPU}`, the second also {others} where these "
        "cost less; the others are slices of the first. The last row is no step: it has all but "
        "slices, each service on the whole GPUs that cost it least, so that slices bring "
        f"{whole.per_month / rungs[-1].per_month:.2f} times. A layout "
        "changes at most once an hour, and what a change takes is not in it; nor is what the first "
        "request waits for that wakes a service. No slice was measured: its speed is its share of "
        "the GPU's bandwidth and multiprocessors."
    )


def _levers() -> Iterator[str]:
    yield (
        "| lever | effort, risk | changes answers | promised | alone, in these ladders | hours a "
        "month | today |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for lever in levers().values():
        yield (
            f"| {lever.title} | {lever.effort}, {lever.risk} | {'yes' if lever.gate else 'no'} | "
            f"{_promised(lever)} | {_range(lever.ours)} | {lever.operation_hours:g} | "
            f"{lever.today} |"
        )


def _promised(lever: Lever) -> str:
    if lever.claimed is None:
        return ""
    note = f" ({lever.claimed.note})" if lever.claimed.note else ""
    return f"{_range(lever.claimed)}{note}"


def _range(savings: SavingRange | None) -> str:
    if savings is None:
        return "not computed"
    low, high = f"{savings.low:.0%}", f"{savings.high:.0%}"
    return low if low == high else f"{low} to {high}"
