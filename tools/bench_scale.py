"""What scaling policies cost at a kept promise, on public traces: `make bench-scale`.

Every policy runs on the same engines behind the same router with the same cold starts, and is
charged by the same prices with the number of reserved nodes that is cheapest for it. It is scored
at the cheapest of its tuned settings that keeps the goal; one that never does has no dollars.
Beside them stand the cover by one who knows the load beforehand, a reactive policy that was tuned
in hindsight, and a bound below which no policy comes. The last line is `BENCH {json}`.
"""

import gzip
import hashlib
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_engine
from figures import benchmark
from scale.cases import CASES, COLD, H100, HOUR, HYPOTHETICAL, TRACES, WARM, find_cases
from scale.runs import (
    COVER,
    DISTURBANCES,
    FULL_POOLS,
    HEAD,
    REACTIVE,
    SLOW_NODES,
    TIERS,
    Result,
    Run,
    Runs,
    play,
)
from scale.tiers import figures_of_tiers
from tessera_lab.fleet.attainment import attainment_goal
from tessera_lab.fleet.hindsight.bound import Supply, lower_bound
from tessera_lab.fleet.model import COLD_START, Router
from tessera_lab.fleet.observation import Settings
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import OURS
from tessera_lab.fleet.prices import PRICE_SETS
from tune_rivals import FINALISTS, FIRST, TUNING, Entry, finalists, order

PRICES, OTHER_PRICES = "aws-2026", "neo-2026"
STATIC, DOCUMENTS = "static", ("hpa-documents-busy", "hpa-documents-mig")
MOST_REPLICAS = 48


class Bench:
    """The runs of all policies; each is made once."""

    def __init__(self, runs: Runs, hours: float, tuned: dict[str, dict[str, list[Entry]]]) -> None:
        self._runs, self._hours, self._tuned = runs, hours, tuned
        self._initial: dict[str, int] = {}

    def covers(self, cases: list[str]) -> dict[str, Result]:
        """Return the cover of each case; all fleets begin with its replicas."""
        wanted = [Run(case=case, policy=COVER, hours=self._hours) for case in cases]
        covers = {run.case: result for run, result in self._results(wanted).items()}
        self._initial = {case: result.initial for case, result in covers.items()}
        return covers

    def search(self, cases: list[str]) -> None:
        """Make the runs of searches, of which each decides the next: two searches at a time."""
        threads = ThreadPoolExecutor(2)
        try:
            searches: list[Future[Any]] = [
                *(threads.submit(self.routed_otherwise, case) for case in cases),
                *(threads.submit(self.static, case) for case in cases),
                *(threads.submit(self.reactive, case) for case in cases),
            ]
            for search in searches:
                search.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def own(self, case: str, start_up: str = COLD, reserved: int = 0) -> Result:
        """Return the product's result, with constants that were frozen on the tuning cuts."""
        return self._result(self._run(case, OURS, {}, start_up, reserved))

    def tiers(self, case: str) -> Result:
        """Return the product's result with the reserved nodes that are best for its own fleet in
        hindsight, and others that come on demand."""
        reserved = self.own(case).reserved[PRICES]
        return self._result(self._run(case, TIERS, {}, reserved=reserved))

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

    def routed_otherwise(self, case: str) -> dict[str, Result]:
        """Return the product without the gateway's queue, and the cover and a fixed number behind
        it, by the names of their figures; nothing of a case in which nothing waits."""
        if not CASES[case].queued:
            return {}
        product = replace(self._run(case, OURS, {}), router=Router.LEAST_TTFT)
        cover = replace(self._run(case, COVER, {}), router=Router.GATEWAY)
        results = self._results([product, cover])
        return {
            "own_engine_queues": results[product],
            "cover_gateway_queue": results[cover],
            "static_gateway_queue": self.static(case, router=Router.GATEWAY),
        }

    def rivals(self, case: str) -> dict[str, Result]:
        """Return each rival at its cheapest setting that keeps the goal, or at one that does not.

        The settings are those that were tried on the tuning cut of the case.
        """
        chosen: dict[str, Result] = {}
        for attempt in range(FINALISTS):
            wanted = {
                name: self._run(case, name, settings[attempt])
                for name, settings in self._candidates(case)
                if attempt < len(settings) and not is_cheapest(case, chosen.get(name))
            }
            results = self._results(list(wanted.values()))
            for name, run in wanted.items():
                chosen[name] = order([chosen.get(name, results[run]), results[run]])[0]
        chosen[STATIC] = self.static(case)
        return chosen

    def published(self, case: str) -> dict[str, Result]:
        """Return each rival as published."""
        wanted = {name: self._run(case, name, {}) for name in FAMILIES if name != STATIC}
        results = self._results(list(wanted.values()))
        return {name: results[run] for name, run in wanted.items()}

    def static(self, case: str, router: Router | None = None) -> Result:
        """Return the fewest static replicas that keep the goal."""
        run = replace(self._run(case, STATIC, {}), router=router)
        return self._least(
            lambda replicas: replace(run, settings=(("replicas", replicas),)),
            list(range(1, MOST_REPLICAS + 1)),
        )

    def reactive(self, case: str) -> Result | None:
        """Return the reactive policy with the knobs that are best on the scored trace itself."""
        if not CASES[case].hindsight:
            return None
        headrooms = [1.0 + step / 20 for step in range(41)]
        results = [
            self._least(partial(self._reactive_run, case, hold), headrooms)
            for hold in (60.0, 180.0, 300.0)
        ]
        sufficient = [result for result in results if result.sufficient]
        return min(sufficient or results, key=lambda result: result.usd[PRICES])

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

    def _candidates(self, case: str) -> Iterator[tuple[str, list[Settings]]]:
        for name, by_case in self._tuned.items():
            if name != STATIC:
                yield name, finalists(by_case.get(case, by_case[FIRST]))

    def _reactive_run(self, case: str, hold: float, headroom: float) -> Run:
        return self._run(case, REACTIVE, {"headroom": headroom, "window": 60.0, "hold": hold})

    def _run(
        self, case: str, policy: str, settings: Settings, start_up: str = COLD, reserved: int = 0
    ) -> Run:
        return Run(
            case=case,
            policy=policy,
            settings=tuple(sorted(settings.items())),
            start_up=start_up,
            reserved=reserved,
            hours=self._hours,
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


def is_cheapest(case: str, result: Result | None) -> bool:
    """Return whether settings that were not tried yet will hardly cost less.

    Of the large trace the settings were chosen from all, and come in the order of their cost there;
    of the others all are tried, unless there is the least number of replicas all the time.
    """
    if result is None or not result.sufficient:
        return False
    return case == FIRST or result.replica_hours <= result.paid_seconds / HOUR


def bounds(case: str, traces: Path, hours: float, ends_by: float) -> dict[str, float]:
    """Return the bound of each price set, USD, on runs whose last request ends by then."""
    trace = CASES[case].trace(traces, hours)
    fleet = CASES[case].fleet(COLD, 0)
    goal = attainment_goal(trace.seconds, COLD_START.high)
    supplies = {
        name: Supply(prices=prices[H100], start_seconds=0.0, min_replicas=fleet.min_replicas)
        for name, prices in PRICE_SETS.items()
    }
    return {
        name: lower_bound(trace, fleet.replica, goal, supply, ends_by).usd
        for name, supply in supplies.items()
    }


def below_bound(results: list[Result], bound: dict[str, float]) -> list[str]:
    """Return what keeps the goal for less than the bound, which cannot be."""
    return [
        f"{result.run.label} on {result.run.case} at {prices}"
        for result in results
        for prices, usd in bound.items()
        if result.sufficient and result.usd[prices] < usd
    ]


def table(case: str, results: list[Result], bound: dict[str, float]) -> str:
    """Return the ranking of a case: what keeps the goal by its dollars, others below."""
    ordered = sorted(results, key=lambda result: (not result.sufficient, result.usd[PRICES]))
    lines = [
        f"| {case} | in time | windows | replica hours | USD on demand | USD mix | reserved | "
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
            f"| {result.run.label} | {result.share:.4f} | {result.window_share:.3f} | "
            f"{result.replica_hours:.2f} | {dollars} |"
        )
    lines.append(f"| bound | | | | | {bound[PRICES]:.2f} | | {bound[OTHER_PRICES]:.2f} |")
    return "\n".join(lines)


def figures_of(
    case: str, own: Result, cover: Result, rivals: dict[str, Result], bound: float
) -> dict[str, Any]:
    """Return the figures of a case; None where a side does not keep the goal."""
    usd = own.usd[PRICES] if own.sufficient else None
    best = min(
        (result for result in rivals.values() if result.sufficient),
        key=lambda result: result.usd[PRICES],
        default=None,
    )
    figures: dict[str, Any] = {
        f"usd_{case}": usd and round(usd, 2),
        f"usd_{case}_cover": round(cover.usd[PRICES], 2),
        f"usd_{case}_bound": round(bound, 2),
        f"best_rival_{case}": best and best.run.policy,
        f"usd_{case}_best_rival": best and round(best.usd[PRICES], 2),
        f"attainment_{case}": round(own.share, 4),
        f"windows_{case}": round(own.window_share, 4),
        f"vs_bound_{case}": usd and round(usd / bound, 3),
        f"vs_cover_{case}_cold": usd and round(usd / cover.usd[PRICES], 3),
    }
    if usd is not None and best is not None:
        gap = best.usd[PRICES] - cover.usd[PRICES]
        figures[f"gap_closed_{case}"] = round((best.usd[PRICES] - usd) / gap, 3) if gap else None
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


def measure(
    *,
    traces: Path = TRACES,
    hours: float = 2.0,
    cases: str = "",
    folder: str = "",
    save: str = "",
    generated: int = 0,
) -> dict[str, Any]:
    """Run, print the tables, and write what is committed."""
    tuned = json.loads(TUNING.read_text(encoding="utf-8"))["policies"]
    with tempfile.TemporaryDirectory() as own:
        if generated:
            traces, folder = Path(own), f"{own}/runs"
            _write_trace(traces / CASES["conv"].file, generated, hours)
        with Runs(traces, Path(folder) if folder else default_folder(traces)) as runs:
            bench = Bench(runs, hours, tuned)
            figures, tables, below = _measure(bench, find_cases(traces, cases), traces, hours)
        if (traces / CASES["conv"].file).exists():
            figures |= sim_speed(traces, generated or 100_000)
    text = "\n\n".join(tables)
    print(f"\n{text}\n")
    if save:
        document = {"figures": figures, "tables": tables}
        Path(save).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if below:
        raise SystemExit(f"below the bound: {', '.join(below)}")
    return figures


def _write_trace(path: Path, requests: int, hours: float) -> None:
    """Write requests of one length, of which most come in the second half."""
    arrivals = (hours * HOUR * (number / requests) ** 0.5 for number in range(requests))
    lines = [f"{arrival:.3f},200,20" for arrival in arrivals]
    text = "\n".join(["arrival_s,input_tokens,output_tokens", *lines])
    path.write_bytes(gzip.compress(text.encode()))


def default_folder(traces: Path) -> Path:
    """Return where results of this commit are kept, apart for other traces."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    where = str(traces.resolve())
    others = "" if traces == TRACES else f"-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    return Path(".bench/scale") / f"{commit}{others}"


def _measure(
    bench: Bench, cases: list[str], traces: Path, hours: float
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return figures, tables, and what is below the bound."""
    figures: dict[str, Any] = {"hours": hours}
    tables: list[str] = []
    below: list[str] = []
    print(HEAD)
    covers = bench.covers(cases)
    bench.search(cases)
    both = list[tuple[Result, Result]]()
    for case in cases:
        own, tiers, rivals = bench.own(case), bench.tiers(case), bench.rivals(case)
        both.append((own, tiers))
        routed, reactive = bench.routed_otherwise(case), bench.reactive(case)
        others = [covers[case], *routed.values(), *([] if reactive is None else [reactive])]
        results = [own, tiers, *rivals.values(), *others]
        ends_by = max(result.paid_seconds for result in results)
        bound = bounds(case, traces, hours, ends_by)
        below += below_bound(results, bound)
        figures |= figures_of(case, own, covers[case], rivals, bound[PRICES])
        figures |= others_of(case, own, routed, reactive)
        tables.append(table(case, results, bound))
        if case == cases[0]:
            figures |= _more_of(case, bench, own, covers[case], rivals)
    figures |= figures_of_tiers(both, bench.disturbed_tiers(both[0][1]), PRICES)
    return figures, tables, below


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
        short={"hours": 0.05, "generated": 200},
        generated={"help": "requests of a trace that is generated in place of others"},
        cases={"help": "some of the cases"},
        folder={"help": "results, one file each"},
        save={"help": "write tables and figures here"},
    )
