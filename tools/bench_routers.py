"""What it is worth to send prompts to where their prefixes are cached: `make bench-routers`.

Fleets of 4 and 16 replicas serve conversations, questions about documents, the Mooncake trace where
there is one, and prompts that share nothing, on the engine's state machine with its prefix cache.
The figure is the highest rate at which 95 % of the requests have their first token within the
objective, and tokens come every 50 ms on average: replica-hours of a load are in inverse proportion
to it. Consistent hashing is tuned on a seed of its own. The last line is `BENCH {json}`.
"""

import argparse
import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from statistics import fmean

from bench_scaling import MODEL, replica_fit, service_spec
from figures import print_figures
from tessera.domain.hardware import gpu_catalog as catalog
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fleet.conversations import Conversations
from tessera_lab.fleet.documents import document_questions
from tessera_lab.fleet.model import FleetModel, Router
from tessera_lab.fleet.observation import Observation, Totals
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace

# Those of vLLM: the product's own limits are for prompts of which nothing is cached.
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 256, 2048
# Nearly all turns of a conversation come within this time.
CONVERSATION = 300.0
GOAL, ITL = 0.95, 0.05
TUNING_SEED = 1000
# The first requests meet empty caches.
WARM_UP = 60.0
# Rates are found to this ratio.
PRECISION = 1.03
# Of the Mooncake trace, seconds.
SPAN = 1200.0
OURS = Router.PREFIXES
NAMES = ("sessions", "sessions_unsalted", "rag", "mooncake", "none")
RIVALS = (Router.RANDOM, Router.LEAST_REQUESTS, Router.LEAST_TTFT, Router.BOUNDED_HASH)
# What the beginning of a prompt is, and how much more than others a replica may have.
HASHED_TOKENS, LOAD_FACTORS = (256, 1408), (1.25, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests at a rate, for some seconds, by a seed."""

    trace: Callable[[float, float, int], Trace]
    ttft: float = 1.0
    max_model_len: int = 16384
    input_tokens: int = 2400
    """Typical tokens of a prompt and of an answer, by which the product sizes a replica."""
    output_tokens: int = 235
    first_rate: float = 6.0
    """Of one replica, where the search begins."""


class Fixed:
    """A fleet that stays as large as it is."""

    interval = scrape = 30.0

    def __init__(self) -> None:
        self.totals = Totals()

    def decide(self, observation: Observation) -> int:
        """Return the replicas that there are."""
        self.totals = observation.totals
        return observation.replicas


@dataclass(frozen=True, slots=True)
class Played:
    """One run."""

    share: float
    """Of the requests in time."""
    itl: float
    """Mean seconds between two tokens."""
    cached: float
    """Of the prompt tokens."""
    promised: float

    @property
    def suffices(self) -> bool:
        return self.share >= GOAL and self.itl <= ITL


def conversations(tenants: int) -> Callable[[float, float, int], Trace]:
    """Return conversations that go on since before the trace."""

    def trace(rate: float, seconds: float, seed: int) -> Trace:
        load = Conversations(tenants=tenants)
        whole = load.draw(rate / load.turns, CONVERSATION + seconds, seed)
        return whole.cut(CONVERSATION, CONVERSATION + seconds)

    return trace


def unshared(rate: float, seconds: float, seed: int) -> Trace:
    """Return prompts as long as those of conversations, without a common beginning."""
    trace = conversations(1)(rate, seconds, seed)
    names = tuple(
        tuple(range(row * 1000, row * 1000 + len(own)))
        for row, own in enumerate(trace.prefixes or ())
    )
    return replace(trace, name="none", prefixes=names)


def mooncake(path: Path) -> Callable[[float, float, int], Trace]:
    """Return a part of the trace at a rate: as many copies as it takes, faster or slower."""

    @cache
    def recorded() -> Trace:
        return read_trace(str(path)).fitting(131072)

    def trace(rate: float, seconds: float, seed: int) -> Trace:
        # Seeds take parts that overlap by half at most.
        whole = recorded()
        begin = seed % 4 * SPAN / 2
        part = whole.cut(begin, begin + SPAN)
        own_rate = len(part) / part.seconds
        copies = max(1, round(rate / own_rate))
        part = part.overlaid(copies, SPAN / copies)
        pace = rate / (own_rate * copies)
        arrivals = array("d", (arrival / pace for arrival in part.arrivals))
        part = replace(part, arrivals=arrivals, seconds=part.seconds / pace)
        return part.cut(0.0, min(seconds, part.seconds))

    return trace


def workloads(traces: Path) -> Mapping[str, Workload]:
    """Return the workloads by their names; Mooncake only where its trace is."""
    by_name = {
        "sessions": Workload(trace=conversations(8)),
        "sessions_unsalted": Workload(trace=conversations(1)),
        "rag": Workload(trace=partial(document_questions, tenants=8), input_tokens=5200),
        "none": Workload(trace=unshared),
    }
    path = traces / "mooncake_conversation.jsonl.gz"
    if path.exists():
        by_name["mooncake"] = Workload(
            trace=mooncake(path),
            ttft=10.0,
            max_model_len=131072,
            input_tokens=12035,
            output_tokens=343,
            first_rate=1.0,
        )
    return by_name


def fleet(workload: Workload, replicas: int, router: Router) -> FleetModel:
    """Return the model on so many A100 as the product sizes it."""
    spec = service_spec("Capacity")
    context = spec.context.model_copy(
        update={
            "max_model_len": workload.max_model_len,
            "typical_input_tokens": workload.input_tokens,
            "typical_output_tokens": workload.output_tokens,
        }
    )
    slo = spec.slo.model_copy(update={"ttft_p95": timedelta(seconds=workload.ttft)})
    spec = spec.model_copy(update={"context": context, "slo": slo})
    prefix_tokens = workload.trace(1.0, WARM_UP, TUNING_SEED).prefix_tokens
    sized = sized_fleet(spec, replica_fit(spec, catalog.models()[MODEL]))
    limits: EngineLimits = replace(
        sized.limits,
        shared_tokens=prefix_tokens,
        max_model_len=workload.max_model_len,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
    )
    return replace(
        sized,
        replica=replace(sized.replica, ttft=workload.ttft),
        limits=limits,
        router=router,
        min_replicas=replicas,
        max_replicas=replicas,
        initial_replicas=replicas,
    )


def play(model: FleetModel, workload: Workload, rate: float, seconds: float, seed: int) -> Played:
    """Play the workload at a rate."""
    trace = workload.trace(rate, seconds, seed)
    policy = Fixed()
    course = Simulation(trace, model, policy, seed=seed).run()
    scored = [
        ttft <= workload.ttft
        for arrival, ttft in zip(trace.arrivals, course.ttft, strict=True)
        if arrival >= WARM_UP
    ]
    tokens = sum(trace.input_tokens)
    return Played(
        share=fmean(scored),
        itl=policy.totals.gap_seconds / max(1, policy.totals.output_gaps),
        cached=course.cached_tokens / tokens,
        promised=course.promised_tokens / tokens,
    )


def rate_at_slo(
    model: FleetModel, workload: Workload, seconds: float, seed: int, first: float
) -> tuple[float, Played]:
    """Return the highest rate within the objective, found from a first one, and its run."""
    low, high, rate, best = (
        0.0,
        math.inf,
        first,
        Played(share=1.0, itl=0.0, cached=0.0, promised=0.0),
    )
    while not low or high / low > PRECISION:
        played = play(model, workload, rate, seconds, seed)
        if played.suffices:
            low, best = rate, played
        else:
            high = rate
        if not low:
            rate = high / 1.25
        elif high == math.inf:
            rate = low * 1.25
        else:
            rate = math.sqrt(low * high)
    return low, best


def tuned(workload: Workload, replicas: int, seconds: float, first: float) -> FleetModel:
    """Return consistent hashing with the knobs that carry most on a seed that is not scored."""
    models = [
        replace(
            fleet(workload, replicas, Router.BOUNDED_HASH), hashed_tokens=tokens, load_factor=factor
        )
        for tokens in HASHED_TOKENS
        for factor in LOAD_FACTORS
    ]
    return max(
        models,
        key=lambda model: rate_at_slo(model, workload, seconds, TUNING_SEED, first)[0],
    )


def main() -> None:
    """Print a table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--workloads", default=",".join(NAMES))
    parser.add_argument("--replicas", default="4,16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--routers", default=",".join((*RIVALS, Router.GATEWAY, OURS)))
    arguments = parser.parse_args()
    known = workloads(arguments.traces)
    routers = [Router(name) for name in arguments.routers.split(",")]
    figures: dict[str, object] = {}
    print("| workload | replicas | router | requests/s at the SLO | cached | promised | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.workloads.split(","):
        if name not in known:
            print(f"no trace of {name} in {arguments.traces}")
            continue
        for count in map(int, arguments.replicas.split(",")):
            rates = compare(name, known[name], count, routers, arguments)
            figures.update(ratios(name, count, rates))
    print_figures(figures)


def compare(
    name: str,
    workload: Workload,
    count: int,
    routers: Sequence[Router],
    arguments: argparse.Namespace,
) -> Mapping[Router, float]:
    """Print the rows of a workload, and return the mean rate of each router over the seeds."""
    rates, first = dict[Router, float](), workload.first_rate * count
    for router in routers:
        begin = time.process_time()
        model = fleet(workload, count, router)
        if router is Router.BOUNDED_HASH:
            model = tuned(workload, count, arguments.seconds, first)
        runs = [
            rate_at_slo(model, workload, arguments.seconds, seed, first)
            for seed in range(arguments.seeds)
        ]
        rates[router] = first = fmean(rate for rate, _ in runs)
        cached, promised = (
            fmean(getattr(played, share) for _, played in runs) for share in ("cached", "promised")
        )
        cpu = time.process_time() - begin
        print(
            f"| {name} | {count} | {router} | {rates[router]:.2f} | {cached:.1%} | {promised:.1%} |"
            f" {cpu:.0f} |",
            flush=True,
        )
    return rates


def ratios(name: str, count: int, rates: Mapping[Router, float]) -> Mapping[str, float]:
    """Return our replica-hours for the same load, relative to others."""
    if OURS not in rates:
        return {}
    rivals = {router: rate for router, rate in rates.items() if router in RIVALS}
    figures = {f"{name}_{count}_requests_per_second": round(rates[OURS], 2)}
    against = {f"vs_{router.replace('-', '_')}": rate for router, rate in rivals.items()}
    if rivals:
        against["vs_best_rival"] = max(rivals.values())
    for other, rate in against.items():
        figures[f"{name}_{count}_replica_hours_{other}"] = round(rate / rates[OURS], 3)
    if name == "none" and rivals:
        figures[f"without_prefixes_{count}"] = figures[
            f"{name}_{count}_replica_hours_vs_best_rival"
        ]
    return figures


if __name__ == "__main__":
    main()
