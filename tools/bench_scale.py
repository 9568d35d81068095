"""What scaling policies cost at a kept promise, on public traces: `make bench-scale`.

Every policy runs on the same engines behind the same router with the same cold starts, and is
charged by the same prices with the number of reserved nodes that is cheapest for it. All but the
product play on replicas of one GPU and of two, and are scored at the cheapest of their tuned
settings and sizes that keeps the goal; one that never does has no dollars. Beside them stand the
cover by one who knows the load beforehand, a reactive policy that was tuned in hindsight, and a
bound below which no policy comes. The last line is `BENCH {json}`. `--parts` plays some of it;
runs are kept until what plays them is edited.
"""

import gzip
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_engine
from figures import benchmark
from scale.cases import CASES, COLD, H100, HOUR, HYPOTHETICAL, TRACES, WARM, Case, Hours, find_cases
from scale.page import (
    BOUND,
    PAGE,
    STATIC,
    Cell,
    cell_of,
    main_table,
    table_beside,
    with_tables,
)
from scale.ranks import rank_as_played
from scale.runs import (
    COVER,
    DISTURBANCES,
    FULL_POOLS,
    HEAD,
    REACTIVE,
    SLOW_NODES,
    SLOW_PROMPTS,
    TIERS,
    Result,
    Run,
    Runs,
    play,
)
from scale.seeds import mean_of
from scale.sources import digest
from scale.tiers import figures_of_tiers
from tessera_lab.fleet.attainment import attainment_goal
from tessera_lab.fleet.hindsight.bound import Supply, lower_bound
from tessera_lab.fleet.model import COLD_START, Router
from tessera_lab.fleet.observation import Settings
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import OURS
from tessera_lab.fleet.prices import PRICE_SETS
from tune_rivals import FINALISTS, FIRST, SIZES, finalists, order, tuned

PRICES, OTHER_PRICES = "aws-2026", "neo-2026"
FIGURES = Path(__file__).parents[1] / "docs" / "figures" / "scale.json"
DOCUMENTS = ("hpa-documents-busy", "hpa-documents-mig")
MOST_REPLICAS = 48
PARTS = (
    "own",
    "sizes",
    "rivals",
    "engines",
    "default",
    "surge",
    "hours",
    "robust",
    "queues",
    "hindsight",
)
# Engines that are not as fast as predicted, by case.
ENGINES = {
    "conv": ("1.3-times-slower", "2-times-slower", SLOW_PROMPTS, "1.5-times-faster"),
    "r1": ("1.5-times-slower",),
}


class Bench:
    """The runs of all policies; each is made once."""

    def __init__(self, runs: Runs, hours: float, seeds: int) -> None:
        self._runs, self._hours, self._seeds = runs, hours, range(1, seeds + 1)
        self._initial: dict[tuple[str, int], int] = {}

    def covers(self, cases: list[str]) -> dict[str, Result]:
        """Return the cover of each case; all fleets begin with its replicas."""
        wanted = [self._run(case, COVER, {}, gpus=gpus) for case in cases for gpus in SIZES]
        covers = self._results(wanted)
        self._initial = {(run.case, run.gpus or 1): covers[run].initial for run in wanted}
        return {case: cheapest(covers[run] for run in wanted if run.case == case) for case in cases}

    def search(self, cases: list[str], *, hindsight: bool) -> None:
        """Make the runs of searches, of which each decides the next: two searches at a time."""
        threads = ThreadPoolExecutor(2)
        try:
            searches: list[Future[Any]] = [
                *(threads.submit(self.static, case) for case in cases),
                *(threads.submit(self.reactive, case) for case in cases if hindsight),
            ]
            for search in searches:
                search.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def mean(self, result: Result) -> Result:
        """Return the mean of the seeds of a run, which keeps the goal if each does."""
        runs = [replace(result.run, seed=seed) for seed in self._seeds]
        results = self._results(runs)
        return mean_of([results[run] for run in runs])

    def best_rival(self, rivals: Iterable[Result]) -> Result | None:
        """Return the cheapest rival that keeps the goal in every seed."""
        sufficient = [result for result in rivals if result.sufficient]
        for result in sorted(sufficient, key=lambda result: result.usd[PRICES]):
            if (mean := self.mean(result)).sufficient:
                return mean
        return None

    def own(self, case: str, start_up: str = COLD, reserved: int = 0) -> Result:
        """Return the product's result, with constants that were frozen on the tuning cuts."""
        return self._result(self._run(case, OURS, {}, start_up=start_up, reserved=reserved))

    def tiers(self, case: str) -> Result:
        """Return the product's result with the reserved nodes that are best for its own fleet in
        hindsight, and others that come on demand, for replicas of its fleet's main size."""
        own = self.own(case)
        size = int(max(own.gpu_hours, key=lambda gpus: own.gpu_hours[gpus]))
        reserved = own.reserved[PRICES] // size
        gpus = size if size > 1 else None
        return self._result(self._run(case, TIERS, {}, reserved=reserved, gpus=gpus))

    def disturbed_tiers(self, tiers: Result) -> dict[str, Result]:
        """Return a result of two tiers under each disturbance that concerns it."""
        names = [*DISTURBANCES, *FULL_POOLS, SLOW_NODES]
        runs = {
            name: replace(tiers.run, disturbance=name)
            for name in names
            # None of its nodes are on spot.
            if name not in ("calm", "spot-blackout")
        }
        results = self._results(list(runs.values()))
        return {name: results[run] for name, run in runs.items()}

    def sizes(self, case: str) -> dict[int, Result]:
        """Return the product's mean where the user says how many GPUs a replica has."""
        runs = {gpus: self._run(case, OURS, {}, gpus=gpus) for gpus in SIZES}
        return {gpus: self.mean(self._result(run)) for gpus, run in runs.items()}

    def beside(self, case: str, own: Run, best: Result | None, **others: Any) -> list[Result]:
        """Return the product's mean under other circumstances, the fewest static replicas, and
        what is the best rival otherwise."""
        result = self._result(replace(own, **others))
        # Other hours are many, and played once.
        if CASES[case].hours is Hours.RAMP:
            result = self.mean(result)
        results = [result, self.static(case, **others)]
        if best is not None and best.run.policy != STATIC:
            results.append(self._result(replace(best.run, case=case, **others)))
        return results

    def routed_otherwise(self, case: str) -> dict[str, Result]:
        """Return the product without the gateway's queue, and the cover and a fixed number behind
        it, by the names of their figures; nothing of a case in which nothing waits."""
        if not CASES[case].queued:
            return {}
        product = replace(self._run(case, OURS, {}), router=Router.LEAST_TTFT)
        covers = [
            replace(self._run(case, COVER, {}, gpus=gpus), router=Router.GATEWAY) for gpus in SIZES
        ]
        results = self._results([product, *covers])
        return {
            "own_engine_queues": results[product],
            "cover_gateway_queue": cheapest(results[cover] for cover in covers),
            "static_gateway_queue": self.static(case, router=Router.GATEWAY),
        }

    def rivals(self, case: str) -> dict[str, Result]:
        """Return each rival at its cheapest setting and size that keeps the goal, or at one that
        does not.

        The settings are those that were tried on the tuning cut of the case.
        """
        chosen: dict[tuple[str, int], Result] = {}
        candidates = list(self._candidates(case))
        for attempt in range(FINALISTS):
            wanted = {
                (name, gpus): self._run(case, name, settings[attempt], gpus=gpus)
                for name, gpus, settings in candidates
                if attempt < len(settings) and not is_cheapest(case, chosen.get((name, gpus)))
            }
            results = self._results(list(wanted.values()))
            for key, run in wanted.items():
                chosen[key] = cheapest([chosen.get(key, results[run]), results[run]])
        names = dict.fromkeys(name for name, _ in chosen)
        return {name: cheapest(chosen[name, gpus] for gpus in SIZES) for name in names}

    def published(self, case: str) -> dict[str, Result]:
        """Return each rival as published."""
        wanted = {
            name: [self._run(case, name, {}, gpus=gpus) for gpus in SIZES]
            for name in FAMILIES
            if name != STATIC
        }
        results = self._results([run for runs in wanted.values() for run in runs])
        return {name: cheapest(results[run] for run in runs) for name, runs in wanted.items()}

    def static(self, case: str, **others: Any) -> Result:
        """Return the fewest static replicas that keep the goal, of the cheapest size."""
        return cheapest(self._fewest(case, gpus, others) for gpus in SIZES)

    def _fewest(self, case: str, gpus: int, others: dict[str, Any]) -> Result:
        run = replace(self._run(case, STATIC, {}, gpus=gpus), **others)
        least = CASES[case].min_replicas
        return self._least(
            lambda replicas: replace(run, settings=(("replicas", replicas),)),
            list(range(least, MOST_REPLICAS // gpus + 1)),
        )

    def reactive(self, case: str) -> Result | None:
        """Return the reactive policy with the knobs that are best on the scored trace itself."""
        if not CASES[case].hindsight:
            return None
        headrooms = [1.0 + step / 20 for step in range(41)]
        results = [
            self._least(partial(self._reactive_run, case, hold, gpus), headrooms)
            for hold in (60.0, 180.0, 300.0)
            for gpus in SIZES
        ]
        return cheapest(results)

    def disturbed(self, case: str, rivals: list[Result]) -> dict[str, list[Result]]:
        """Return our result and the rivals' under each disturbance, own first."""
        runs = [self._run(case, OURS, {}), *(result.run for result in rivals)]
        disturbed: dict[str, list[Result]] = {}
        for name in DISTURBANCES:
            if name != "calm":
                wanted = [replace(run, disturbance=name) for run in runs]
                results = self._results(wanted)
                disturbed[name] = [results[run] for run in wanted]
        return disturbed

    def _candidates(self, case: str) -> Iterator[tuple[str, int, list[Settings]]]:
        for gpus in SIZES:
            for name, by_case in tuned(gpus).items():
                if name != STATIC:
                    yield name, gpus, finalists(by_case.get(case, by_case[FIRST]))

    def _reactive_run(self, case: str, hold: float, gpus: int, headroom: float) -> Run:
        settings = {"headroom": headroom, "window": 60.0, "hold": hold}
        return self._run(case, REACTIVE, settings, gpus=gpus)

    def _run(self, case: str, policy: str, settings: Settings, **others: Any) -> Run:
        return Run(
            case=case,
            policy=policy,
            settings=tuple(sorted(settings.items())),
            hours=self._hours,
            **others,
        )

    def _least(self, run: Callable[[float], Run], values: list[Any]) -> Result:
        """Return the result of the least value that keeps the goal; attainment grows with it."""
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            if self._result(run(values[middle])).sufficient:
                high = middle
            else:
                low = middle + 1
        return self._result(run(values[low]))

    def _results(self, runs: list[Run]) -> dict[Run, Result]:
        return self._runs.results(runs, self._initial)

    def _result(self, run: Run) -> Result:
        return self._results([run])[run]


def cheapest(results: Iterable[Result]) -> Result:
    """Return the cheapest result that keeps the goal, or the one that comes nearest to it."""
    return order(list(results))[0]


def part_of(variant: Case) -> str:
    """Return the part that plays a variant of a case."""
    if variant.hours is not Hours.RAMP:
        return "hours"
    return "surge" if variant.surge > 1 else "default"


def name_of(result: Result) -> str:
    """Return a policy with its router, where that is not its own, and the GPUs of its replicas."""
    sizes = " and ".join(result.gpu_hours)
    return f"{result.run.label}, {sizes} {'GPU' if sizes == '1' else 'GPUs'}"


def is_cheapest(case: str, result: Result | None) -> bool:
    """Return whether settings that were not tried yet will hardly cost less.

    Of the large trace the settings were chosen from all, and come in the order of their cost there;
    of the others all are tried, unless there is the least number of replicas all the time.
    """
    if result is None or not result.sufficient:
        return False
    return case == FIRST or result.replica_hours <= result.paid_seconds / HOUR


def bounds(case: str, traces: Path, hours: float, ends_by: float) -> dict[str, float]:
    """Return the bound of each price set, USD, on runs whose last request ends by then.

    It is that of the size of replicas that has the lower one.
    """
    trace = CASES[case].trace(traces, hours)
    goal = attainment_goal(trace.seconds, COLD_START.high)
    least: dict[str, float] = {}
    for gpus in SIZES:
        fleet = CASES[case].fleet(COLD, 0, gpus)
        for name, prices in PRICE_SETS.items():
            supply = Supply(
                prices=prices[H100], gpus=gpus, start_seconds=0.0, min_replicas=fleet.min_replicas
            )
            usd = lower_bound(trace, fleet.replica, goal, supply, ends_by).usd
            least[name] = min(usd, least.get(name, usd))
    return least


def below_bound(results: list[Result], bound: dict[str, float]) -> list[str]:
    """Return what keeps the goal for less than the bound, which cannot be."""
    return [
        f"{result.run.label} on {result.run.case} at {prices}"
        for result in results
        for prices, usd in bound.items()
        if result.sufficient and result.usd[prices] < usd
    ]


def table(case: str, results: list[Result], bound: dict[str, float] | None) -> str:
    """Return the ranking of a case: what keeps the goal by its dollars, others below."""
    ordered = sorted(results, key=lambda result: (not result.sufficient, result.usd[PRICES]))
    lines = [
        f"| {case} | in time | windows | GPU hours | USD on demand | USD mix | reserved | "
        f"USD mix, {OTHER_PRICES} |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for result in ordered:
        dollars = (
            f"{result.usd_on_demand[PRICES]:.2f} | {result.usd[PRICES]:.2f} | "
            f"{result.reserved[PRICES]} | {result.usd[OTHER_PRICES]:.2f}"
            if result.sufficient
            else "missed | missed | | missed"
        )
        lines.append(
            f"| {name_of(result)} | {result.share:.4f} | {result.window_share:.3f} | "
            f"{sum(result.gpu_hours.values()):.2f} | {dollars} |"
        )
    if bound is not None:
        lines.append(f"| bound | | | | | {bound[PRICES]:.2f} | | {bound[OTHER_PRICES]:.2f} |")
    return "\n".join(lines)


def figures_of(case: str, own: Result, cover: Result, bound: float) -> dict[str, Any]:
    """Return the figures of a case; None where ours misses the goal."""
    usd = own.usd[PRICES] if own.sufficient else None
    return {
        f"usd_{case}": usd and round(usd, 2),
        f"usd_{case}_cover": round(cover.usd[PRICES], 2),
        f"usd_{case}_bound": round(bound, 2),
        f"gpus_{case}": "+".join(own.gpu_hours),
        f"attainment_{case}": round(own.share, 4),
        f"windows_{case}": round(own.window_share, 4),
        f"vs_bound_{case}": usd and round(usd / bound, 3),
        f"vs_cover_{case}_cold": usd and round(usd / cover.usd[PRICES], 3),
    }


def figures_of_rival(case: str, own: Result, cover: Result, best: Result | None) -> dict[str, Any]:
    """Return the figures of the best rival; None where none keeps the goal."""
    figures: dict[str, Any] = {
        f"best_rival_{case}": best and name_of(best),
        f"usd_{case}_best_rival": best and round(best.usd[PRICES], 2),
    }
    if own.sufficient and best is not None:
        rival, least = best.usd[PRICES], cover.usd[PRICES]
        gap = rival - least
        figures[f"gap_closed_{case}"] = round((rival - own.usd[PRICES]) / gap, 3) if gap else None
    return figures


def others_of(
    case: str, own: Result, routed: dict[str, Result], reactive: Result | None
) -> dict[str, Any]:
    """Return the figures of what is neither ours nor a rival's."""
    figures: dict[str, Any] = {
        f"usd_{case}_{name}": round(result.usd[PRICES], 2) if result.sufficient else None
        for name, result in routed.items()
    }
    if reactive is not None and own.sufficient and reactive.sufficient:
        figures[f"vs_hindsight_{case}"] = round(own.usd[PRICES] / reactive.usd[PRICES], 3)
    return figures


def savings(own: Result, published: dict[str, Result]) -> dict[str, Any]:
    """Return what we save relative to policies as published; None where these miss the goal.

    To the documents' HPA with all replicas on demand for both, which is scaling alone, and to the
    cheapest policy on demand with the mix of prices for ours.
    """
    on_demand = {
        name: result.usd_on_demand[PRICES]
        for name, result in published.items()
        if result.sufficient
    }
    documents = [on_demand[name] for name in DOCUMENTS if name in on_demand]

    def saving(usd: float, others: Collection[float]) -> float | None:
        return round(1 - usd / min(others), 3) if own.sufficient and others else None

    return {
        "published_that_keep_the_goal": sorted(on_demand),
        "saving_vs_documents": saving(own.usd_on_demand[PRICES], documents),
        "saving_price_mix_untuned": saving(own.usd[PRICES], on_demand.values()),
    }


def sim_speed(traces: Path, requests_of_day: int) -> dict[str, float]:
    """Return how fast a fleet of 8 with its router is simulated, and the growth of memory."""
    engine = bench_engine.simulate_day(requests_of_day, seed=1)["sim_requests_per_cpu_s"]
    began, requests, sizes = time.process_time(), 0, []
    for _ in range(4):
        run = Run(case="conv", policy=STATIC, settings=(("replicas", 8.0),), hours=0.5)
        requests += play(run, traces, 8).requests
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    rate = requests / (time.process_time() - began)
    return {
        "sim_requests_per_cpu_second": round(rate),
        "sim_vs_engine": round(rate / engine, 3),
        "rss_last_to_first_quarter": round(sizes[-1] / sizes[0], 3),
    }


def measure(  # noqa: PLR0913 - the options of the command
    *,
    traces: Path = TRACES,
    hours: float = 2.0,
    cases: str = "",
    parts: str = ",".join(PARTS),
    seeds: int = 5,
    folder: str = "",
    page: bool = False,
    generated: int = 0,
) -> dict[str, Any]:
    """Run, print the tables, and write what is committed."""
    chosen = parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as own:
        if generated:
            traces, folder = Path(own), f"{own}/runs"
            _write_trace(traces / CASES["conv"].file, generated, hours)
        with Runs(traces, Path(folder) if folder else default_folder(traces)) as runs:
            bench = Bench(runs, hours, seeds)
            names = find_cases(traces, cases)
            outcome = _measure(bench, names, chosen, traces, hours)
        if "robust" in chosen and (traces / CASES["conv"].file).exists():
            outcome.figures |= sim_speed(traces, generated or 100_000)
    text = "\n\n".join(outcome.tables)
    print(f"\n{text}\n")
    if page:
        document = saved(FIGURES, outcome)
        FIGURES.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        tables = with_tables(PAGE.read_text(encoding="utf-8"), page_of(document))
        PAGE.write_text(tables, encoding="utf-8")
    if outcome.below:
        raise SystemExit(f"below the bound: {', '.join(outcome.below)}")
    return outcome.figures


def _write_trace(path: Path, requests: int, hours: float) -> None:
    """Write requests of one length, of which most come in the second half."""
    arrivals = (hours * HOUR * (number / requests) ** 0.5 for number in range(requests))
    lines = [f"{arrival:.3f},200,20" for arrival in arrivals]
    text = "\n".join(["arrival_s,input_tokens,output_tokens", *lines])
    path.write_bytes(gzip.compress(text.encode()))


def default_folder(traces: Path) -> Path:
    """Return where results are kept, apart for other traces."""
    where = str(traces.resolve())
    others = "" if traces == TRACES else f"-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    return Path(".bench") / f"scale{others}"


@dataclass(slots=True)
class Outcome:
    """What was measured."""

    figures: dict[str, Any] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    """What is below the bound, which cannot be."""
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    """By case and policy."""
    beside: dict[str, list[Cell]] = field(default_factory=dict)

    def add_beside(self, name: str, results: list[Result]) -> None:
        """Add the product and the static replicas where they stand beside a case."""
        self.figures |= figures_beside(name, *results)
        self.tables.append(table(name, results, None))
        self.beside[name] = [cell_of(result, PRICES) for result in results]

    @property
    def document(self) -> dict[str, Any]:
        return {"figures": self.figures, "cells": self.cells, "beside": self.beside}


def saved(path: Path, outcome: Outcome) -> dict[str, Any]:
    """Return the outcome beside what other parts left in a file, of the same sources."""
    document: dict[str, Any] = {"sources": digest(product=True), **outcome.document}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before.get("sources") != document["sources"]:
        return document
    cells = {case: before["cells"].get(case, {}) | row for case, row in outcome.cells.items()}
    merged = {name: before[name] | document[name] for name in outcome.document}
    return document | merged | {"cells": before["cells"] | cells}


def page_of(document: Mapping[str, Any]) -> str:
    """Return the tables of the page."""
    cells = {
        case: [Cell(*cell) for cell in row.values()] for case, row in document["cells"].items()
    }
    beside = {name: [Cell(*cell) for cell in row] for name, row in document["beside"].items()}
    return "\n\n".join([main_table(cells), *([table_beside(beside)] if beside else [])])


def _measure(
    bench: Bench, cases: list[str], parts: list[str], traces: Path, hours: float
) -> Outcome:
    outcome = Outcome({"hours": hours})
    print(HEAD)
    main = list(dict.fromkeys(CASES[case].beside or case for case in cases))
    covers = bench.covers(main)
    bench.search(main, hindsight="hindsight" in parts)
    both, bests = list[tuple[Result, Result]](), dict[str, Result | None]()
    for case in main:
        own, tiers = bench.mean(bench.own(case)), bench.mean(bench.tiers(case))
        both.append((own, tiers))
        static = bench.static(case)
        reactive = bench.reactive(case) if "hindsight" in parts else None
        rivals = (bench.rivals(case) if "rivals" in parts else {}) | {STATIC: static}
        routed = bench.routed_otherwise(case) if "queues" in parts else {}
        others = [covers[case], *routed.values(), *([] if reactive is None else [reactive])]
        results = [own, tiers, *rivals.values(), *others]
        bound = bounds(case, traces, hours, max(result.paid_seconds for result in results))
        outcome.below += below_bound(results, bound)
        bests[case] = best = bench.best_rival(rivals.values())
        outcome.figures |= figures_of(case, own, covers[case], bound[PRICES])
        if "rivals" in parts:
            outcome.figures |= figures_of_rival(case, own, covers[case], best)
        outcome.figures |= others_of(case, own, {STATIC: static, **routed}, reactive)
        outcome.tables.append(table(case, results, bound))
        outcome.cells[case] = {BOUND: Cell(BOUND, round(bound[PRICES], 2))} | {
            result.run.policy: cell_of(result, PRICES)
            for result in results
            if result.run.router is None
        }
        if "sizes" in parts:
            outcome.figures |= figures_of_sizes(case, traces, bench.sizes(case))
        if "engines" in parts:
            for scene in ENGINES.get(case, ()):
                slow = bench.beside(case, bench.own(case).run, best, disturbance=scene)
                outcome.add_beside(f"{case}-{scene}", slow)
        if case == main[0] and "robust" in parts:
            outcome.figures |= _more_of(case, bench, own, covers[case], rivals)
    for case in main:
        for name in (name for name in CASES if CASES[name].beside == case):
            if part_of(CASES[name]) in parts:
                run = replace(bench.own(case).run, case=name)
                outcome.add_beside(name, bench.beside(name, run, bests[case]))
    disturbed = bench.disturbed_tiers(both[0][1]) if "robust" in parts else {}
    outcome.figures |= figures_of_tiers(both, disturbed, PRICES)
    return outcome


def figures_of_sizes(case: str, traces: Path, results: Mapping[int, Result]) -> dict[str, Any]:
    """Return what each size costs, and whether the choice of the instance type ranks them so, given
    the scored load; None where they are even."""
    usd = {gpus: result.usd[PRICES] for gpus, result in results.items()}
    return {
        **{f"usd_{case}_{gpus}_gpus": round(each, 2) for gpus, each in usd.items()},
        f"rank_as_played_{case}": rank_as_played(case, traces, usd).agree,
    }


def figures_beside(name: str, own: Result, *rivals: Result) -> dict[str, Any]:
    """Return the figures of what stands beside a case: ours and the cheapest rival's that keeps
    the goal."""
    rival = cheapest(rivals)
    return {
        f"usd_{name}": round(own.usd[PRICES], 2),
        f"gpus_{name}": "+".join(own.gpu_hours),
        f"attainment_{name}": round(own.share, 4),
        f"windows_{name}": round(own.window_share, 4),
        f"kept_{name}": own.sufficient,
        f"usd_{name}_best_rival": round(rival.usd[PRICES], 2) if rival.sufficient else None,
    }


def _more_of(
    case: str, bench: Bench, own: Result, cover: Result, rivals: dict[str, Result]
) -> dict[str, Any]:
    """Return the figures that are taken on one case: warm starts, documents, disturbances."""
    figures: dict[str, Any] = {}
    reserved = cover.reserved[PRICES]
    warm = [bench.own(case, WARM, count) for count in (reserved, reserved + 1, reserved + 2)]
    sufficient = [result for result in warm if result.sufficient]
    if sufficient:
        usd = min(result.usd[PRICES] for result in sufficient)
        figures[f"vs_cover_{case}_warm"] = round(usd / cover.usd[PRICES], 3)
    figures[f"usd_{case}_hypothetical"] = round(bench.own(case, HYPOTHETICAL).usd[PRICES], 2)
    published = bench.published(case)
    figures |= savings(own, published)
    ranked = sorted(
        (result for name, result in rivals.items() if result.sufficient and name != STATIC),
        key=lambda result: result.usd[PRICES],
    )
    disturbed = bench.disturbed(case, [rivals[STATIC], *ranked[:2]])
    shares = {name: [result.share for result in results] for name, results in disturbed.items()}
    for name, (share, *others) in shares.items():
        figures[f"attainment_{name}"] = round(share, 4)
        figures[f"attainment_{name}_best_other"] = round(max(others), 4)
    figures[f"attainment_min_robust_{case}"] = round(min(share for share, *_ in shares.values()), 4)
    figures["broken_streams"] = own.broken_streams + sum(
        results[0].broken_streams for results in disturbed.values()
    )
    return figures


if __name__ == "__main__":
    benchmark(
        measure,
        short={"hours": 0.05, "generated": 200, "seeds": 1},
        generated={"help": "requests of a trace that is generated in place of others"},
        cases={"help": "some of the cases"},
        parts={"help": f"some of {', '.join(PARTS)}"},
        seeds={"help": "of the product's runs and of the best rival's"},
        folder={"help": "results, one file each"},
        page={"help": "write figures and the tables of docs/benchmarks.md, beside other parts"},
    )
