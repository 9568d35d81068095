"""What it is worth to send prompts to where their prefixes are cached: `make bench-affinity`.

Fleets of 4 and 16 replicas serve conversations, questions about documents, the Mooncake trace where
there is one, and prompts that share nothing, on the engine's state machine with its prefix cache.
The figure is the rate at which 95 % of the requests have their first token within the objective,
and tokens come every 50 ms on average: replica-hours of a load are in inverse proportion to it.
Rivals with knobs are tuned on four replicas and a seed that is not scored. The last line is `BENCH
{json}`.
"""

import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from statistics import fmean

from bench_scaling import MODEL, PRODUCT, replica_fit, service_spec
from figures import benchmark
from tessera.domain.gateway.prefixes import PromptBlocks, block_hashes
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.picking.prefix_record import PrefixRecords
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fleet.conversations import Conversations
from tessera_lab.fleet.documents import document_questions
from tessera_lab.fleet.model import FleetModel, Router
from tessera_lab.fleet.observation import Observation, Settings, Totals
from tessera_lab.fleet.rival_routers import RIVALS
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace

# Those of vLLM: the product's own limits are for prompts of which nothing is cached.
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 256, 2048
# Nearly all turns of a conversation come within this time.
CONVERSATION = 300.0
GOAL, ITL = 0.95, 0.05
# Nothing is late in the shortest runs, and the search needs a logarithm.
LEAST_LOAD = 0.01
TUNING_SEED, TUNING_REPLICAS = 1000, 4
# The first requests meet empty caches: this share of a run is not scored.
WARM_UP = 0.4
# Rates are found between two runs whose rates have this ratio, or from a run as near to the limit.
PRECISION = 1.03
# Of the Mooncake trace, seconds.
SPAN = 1800.0
# A system prompt of a conversation and the beginning of what is its own.
SESSION_TOKENS = 1216
GATEWAYS = (1, 2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests at a rate, for some seconds, by a seed."""

    trace: Callable[[float, float, int], Trace]
    ttft: float = 1.0
    max_model_len: int = 16384
    input_tokens: int = 2400
    """Typical tokens of a prompt and of an answer, by which the product sizes a replica."""
    output_tokens: int = 235
    first_rate: float = 9.0
    """Of one replica, where the search begins."""
    product: str = PRODUCT
    seconds: float = 120.0
    """Of a run."""
    precision: float = PRECISION


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A router with its settings."""

    name: str
    router: Router
    settings: Settings = field(default_factory=dict)


OURS = Contender(name="prefixes", router=Router.PREFIXES)
# The gateway that knows of no cache.
BLIND = Contender(name="gateway", router=Router.GATEWAY)
TUNED = [f"{router}-tuned" for router, family in RIVALS.items() if family.grid]
# Those on more replicas than four: settings as published are among those that are tuned over.
OF_LARGE_FLEETS = (Router.LEAST_REQUESTS, *TUNED, BLIND.name, OURS.name)


class Fixed:
    """A fleet that stays as large as it is; it notes the gaps between tokens after a moment."""

    def __init__(self, begin: float, seconds: float) -> None:
        self._begin = begin
        # Often enough in a short run.
        self.interval = self.scrape = min(15.0, seconds / 8)
        self._first: Totals | None = None
        self._last = Totals()

    def decide(self, observation: Observation) -> int:
        """Return the replicas that there are."""
        self._last = observation.totals
        if self._first is None and observation.at >= self._begin:
            self._first = self._last
        return observation.replicas

    @property
    def itl(self) -> float:
        """Return the mean seconds between two tokens."""
        first, last = self._first or Totals(), self._last
        gaps = last.output_gaps - first.output_gaps
        return (last.gap_seconds - first.gap_seconds) / max(1, gaps)


@dataclass(frozen=True, slots=True)
class Played:
    """One run."""

    load: float
    """What it takes of the objective that it is nearest to: 1 is the limit."""
    cached: float
    """Of the prompt tokens."""
    promised: float
    hottest: float
    """Requests of the replica with most of them, relative to the mean."""


def conversations(tenants: int, lead: float = CONVERSATION) -> Callable[[float, float, int], Trace]:
    """Return conversations that go on since before the trace, for so many seconds."""

    def trace(rate: float, seconds: float, seed: int) -> Trace:
        load = Conversations(tenants=tenants)
        whole = load.draw(rate / load.turns, lead + seconds, seed)
        return whole.cut(lead, lead + seconds)

    return trace


def unshared(lead: float, rate: float, seconds: float, seed: int) -> Trace:
    """Return prompts as long as those of conversations, without a common beginning."""
    trace = conversations(1, lead)(rate, seconds, seed)
    names = tuple(
        tuple(range(row * 1000, row * 1000 + len(own)))
        for row, own in enumerate(trace.prefixes or ())
    )
    return replace(trace, name="none", prefixes=names)


def with_one_key(
    whole: Callable[[float, float, int], Trace], rate: float, seconds: float, seed: int
) -> Trace:
    """Return a trace in which every other conversation has the same key as all of these."""
    trace = whole(rate, seconds, seed)
    all_turns = trace.turns or ()
    names = list(dict.fromkeys(spans.conversation for spans in all_turns))
    every_other = set(names[::2])
    turns = tuple(
        spans._replace(conversation=-1) if spans.conversation in every_other else spans
        for spans in all_turns
    )
    return replace(trace, turns=turns)


def mooncake(path: Path) -> Callable[[float, float, int], Trace]:
    """Return a part of the trace at a rate: as many copies as it takes, faster or slower."""

    @cache
    def recorded() -> Trace:
        return read_trace(str(path)).fitting(131072)

    def trace(rate: float, seconds: float, seed: int) -> Trace:
        # Seeds take parts that overlap.
        whole = recorded()
        begin = seed % 5 * (whole.seconds - SPAN) / 4
        part = whole.cut(begin, begin + SPAN)
        own_rate = len(part) / part.seconds
        copies = max(1, round(rate / own_rate))
        part = part.overlaid(copies, SPAN / copies)
        pace = rate / (own_rate * copies)
        arrivals = array("d", (arrival / pace for arrival in part.arrivals))
        part = replace(part, arrivals=arrivals, seconds=part.seconds / pace)
        return part.cut(0.0, min(seconds, part.seconds))

    return trace


def known_workloads(traces: Path, share: float, precision: float) -> Mapping[str, Workload]:
    """Return the workloads by their names; Mooncake only where its trace is.

    Runs have this share of their time.
    """
    lead = share * CONVERSATION
    by_name = {
        "sessions": Workload(trace=conversations(8, lead)),
        "sessions_unsalted": Workload(trace=conversations(1, lead)),
        "rag": Workload(trace=partial(document_questions, tenants=8), input_tokens=5200),
        "rag_unsalted": Workload(trace=document_questions, input_tokens=5200),
        "none": Workload(trace=partial(unshared, lead), first_rate=4.0),
    }
    path = traces / "mooncake_conversation.jsonl.gz"
    if path.exists():
        by_name["mooncake"] = Workload(
            trace=mooncake(path),
            ttft=10.0,
            max_model_len=131072,
            input_tokens=12035,
            output_tokens=343,
            first_rate=1.5,
            # An A100 takes longer than 10 s for one prompt of twenty, without any load.
            product="NVIDIA-H100-80GB-HBM3",
            seconds=1200.0,
        )
    return {
        name: replace(workload, seconds=share * workload.seconds, precision=precision)
        for name, workload in by_name.items()
    }


NAMES = ("sessions", "sessions_unsalted", "rag", "rag_unsalted", "mooncake", "none")


def fleet(workload: Workload, replicas: int, contender: Contender) -> FleetModel:
    """Return the model on so many GPUs as the product sizes it."""
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
    prefix_tokens = workload.trace(1.0, 60.0, TUNING_SEED).prefix_tokens
    sized = sized_fleet(spec, replica_fit(spec, catalog.models()[MODEL], workload.product))
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
        router=contender.router,
        router_settings=contender.settings,
        min_replicas=replicas,
        max_replicas=replicas,
        initial_replicas=replicas,
    )


def play(model: FleetModel, workload: Workload, rate: float, seed: int) -> Played:
    """Play the workload at a rate."""
    trace = workload.trace(rate, workload.seconds, seed)
    begin = WARM_UP * trace.seconds
    policy = Fixed(begin, trace.seconds)
    course = Simulation(trace, model, policy, seed=seed).run()
    late = fmean(
        ttft > workload.ttft
        for arrival, ttft in zip(trace.arrivals, course.ttft, strict=True)
        if arrival >= begin
    )
    tokens = sum(trace.input_tokens)
    return Played(
        load=max(late / (1 - GOAL), policy.itl / ITL, LEAST_LOAD),
        cached=course.cached_tokens / tokens,
        promised=course.promised_tokens / tokens,
        hottest=max(course.requests.values()) / fmean(course.requests.values()),
    )


def rate_at_slo(
    model: FleetModel, workload: Workload, seed: int, first: float
) -> tuple[float, Played]:
    """Return the rate at the objective, interpolated between runs, and the run next to it.

    A run at the limit has a `load` of 1; between two runs its logarithm is a line over that of the
    rate.
    """
    runs = dict[float, Played]()
    rate, slope = first, 3.0
    low, high = 0.0, math.inf
    while True:
        played = runs[rate] = play(model, workload, rate, seed)
        distance = math.log(played.load)
        if distance <= 0:
            low, high = rate, high if high > rate else math.inf
        else:
            low, high = low if low < rate else 0.0, rate
        bracketed = 0 < low < high < math.inf
        if bracketed:
            slope = math.log(runs[high].load / runs[low].load) / math.log(high / low)
        crossing = rate * math.exp(-distance / slope)
        narrow = bracketed and high / low < workload.precision
        if narrow or abs(distance / slope) < math.log(workload.precision) / 2:
            return crossing, played
        if high == math.inf:
            rate = min(1.3 * rate, max(1.02 * rate, 1.01 * crossing))
        elif not low:
            rate = max(rate / 1.3, min(rate / 1.02, crossing / 1.01))
        else:
            margin = (high / low) ** 0.2
            rate = min(high / margin, max(low * margin, crossing))


def contenders(workload: Workload, names: Sequence[str]) -> Iterator[Contender]:
    """Yield rivals, as published and tuned, and the gateway without a record and with it."""
    for router, family in RIVALS.items():
        if router in names:
            yield Contender(name=str(router), router=router)
        if family.grid and f"{router}-tuned" in names:
            yield tuned(workload, router)
    for contender in (Contender(name="least-ttft", router=Router.LEAST_TTFT), BLIND, OURS):
        if contender.name in names:
            yield contender


def tuned(workload: Workload, router: Router) -> Contender:
    """Return a rival with the settings that carry most on a seed that is not scored."""
    best, rate = Contender(name=f"{router}-tuned", router=router), 0.0
    first = workload.first_rate * TUNING_REPLICAS
    for settings in ({}, *RIVALS[router].grid):
        contender = replace(best, settings=settings)
        model = fleet(workload, TUNING_REPLICAS, contender)
        carried, _ = rate_at_slo(model, workload, TUNING_SEED, rate or first)
        if carried > rate:
            best, rate = contender, carried
    return best


def compare(
    name: str, workload: Workload, counts: Sequence[int], names: Sequence[str], seeds: int
) -> Mapping[str, object]:
    """Print the rows of a workload, and return its figures."""
    rates = {count: dict[str, float]() for count in counts}
    for contender in contenders(workload, names):
        rate = [workload.first_rate * counts[0], *rates[counts[0]].values()][-1]
        for before, count in zip((counts[0], *counts), counts, strict=False):
            begin, rate = time.process_time(), rate * count / before
            if count > TUNING_REPLICAS and contender.name not in OF_LARGE_FLEETS:
                continue
            model = fleet(workload, count, contender)
            runs = list[tuple[float, Played]]()
            for seed in range(seeds):
                runs.append(rate_at_slo(model, workload, seed, rate))
                rate = fmean(each for each, _ in runs)
            rates[count][contender.name] = rate
            cached, promised = (
                fmean(getattr(played, share) for _, played in runs)
                for share in ("cached", "promised")
            )
            knobs = ", ".join(f"{knob} {value:g}" for knob, value in contender.settings.items())
            print(
                f"| {name} | {count} | {contender.name} | {knobs} | {rate:.2f} | {cached:.1%} | "
                f"{promised:.1%} | {time.process_time() - begin:.0f} |",
                flush=True,
            )
    return {key: value for count in counts for key, value in ratios(name, count, rates[count])}


def ratios(name: str, count: int, rates: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Yield our replica-hours for the same load, relative to others."""
    if OURS.name not in rates:
        return
    rate, suffix = rates[OURS.name], f"{name}_{count}"
    yield f"requests_per_second_{suffix}", round(rate, 2)
    rivals = {key: each for key, each in rates.items() if key not in (OURS.name, BLIND.name)}
    if Router.LEAST_REQUESTS in rates:
        value = rates[Router.LEAST_REQUESTS] / rate
        yield f"replica_hours_vs_least_requests_{suffix}", round(value, 3)
    if rivals:
        yield f"vs_best_rival_{suffix}", round(max(rivals.values()) / rate, 3)
    if name == "none" and BLIND.name in rates:
        yield f"without_prefixes_{count}", round(rates[BLIND.name] / rate, 3)


def compare_gateways(workload: Workload, count: int, seeds: int) -> Mapping[str, object]:
    """Print what it costs that gateways have a record each, and return the figures."""
    figures, rate, alone = dict[str, object](), workload.first_rate * count, 0.0
    for gateways in GATEWAYS:
        for session_tokens in (0, SESSION_TOKENS) if gateways > 1 else (0,):
            model = fleet(workload, count, OURS)
            model = replace(model, gateways=gateways, session_tokens=session_tokens)
            runs = [rate_at_slo(model, workload, seed, rate) for seed in range(seeds)]
            rate = fmean(each for each, _ in runs)
            alone = alone or rate
            spread = "by_session" if session_tokens else "at_random"
            cached = fmean(played.cached for _, played in runs)
            print(
                f"| {count} | {gateways} | {spread} | {rate:.2f} | {cached:.1%} | "
                f"{alone / rate:.3f} |",
                flush=True,
            )
            figures[f"gateways_{gateways}_{spread}_{count}"] = round(alone / rate, 3)
        if gateways == 1:
            continue
        hot = replace(workload, trace=partial(with_one_key, workload.trace))
        model = replace(fleet(workload, count, OURS), gateways=gateways)
        hottest = fmean(play(model, hot, rate, seed).hottest for seed in range(seeds))
        figures[f"hottest_of_one_key_{gateways}_{count}"] = round(hottest, 3)
        print(
            f"{gateways} gateways, half of the conversations with one key: the replica with most "
            f"requests has {hottest:.2f} of the mean",
            flush=True,
        )
    return figures


def lookup_microseconds(replicas: int = 16) -> float:
    """Return the CPU of hashing a prompt of 8,000 tokens and finding it in all records."""
    text = bytes(range(32, 127)) * 337
    records = PrefixRecords()
    uids = [str(number) for number in range(replicas)]

    def prompt() -> PromptBlocks:
        hashes = block_hashes(text[:32000], "team-a")
        return PromptBlocks(owner="", hashes=hashes, tokens_per_block=256, prompt_tokens=8000)

    for number, uid in enumerate(uids):
        # Replicas hold from nothing to all of it.
        beginning = replace(prompt(), hashes=prompt().hashes[: 2 * number + 1])
        records.replica(uid).send(beginning)
    samples = list[float]()
    for _ in range(2000):
        begin = time.process_time_ns()
        records.cached_tokens(prompt(), uids)
        samples.append((time.process_time_ns() - begin) / 1000)
    return round(sorted(samples)[len(samples) // 2], 1)


_ROUTERS = ",".join([*RIVALS, *TUNED, Router.LEAST_TTFT, BLIND.name, OURS.name])


def measure(  # noqa: PLR0913 - the options of the command
    *,
    traces: Path = Path("../shared/traces"),
    workloads: str = ",".join(NAMES),
    replicas: str = "4,16",
    seeds: int = 5,
    routers: str = _ROUTERS,
    share: float = 1.0,
    precision: float = PRECISION,
    gateways: bool = False,
) -> dict[str, object]:
    """Print tables; return the figures."""
    by_name = known_workloads(traces, share, precision)
    counts = [int(count) for count in replicas.split(",")]
    figures: dict[str, object] = {"prefix_lookup_us": lookup_microseconds()}
    if not gateways:
        print("| workload | replicas | router | knobs | req/s | cached | promised | CPU s |")
        print("|---|---|---|---|---|---|---|---|")
        for name in workloads.split(","):
            if name not in by_name:
                print(f"no trace of {name} in {traces}: left out")
                continue
            figures.update(compare(name, by_name[name], counts, routers.split(","), seeds))
    print("| replicas | gateways | requests | req/s | cached | replica-hours |")
    print("|---|---|---|---|---|---|")
    for count in counts:
        figures.update(compare_gateways(by_name["sessions"], count, seeds))
    return figures


if __name__ == "__main__":
    benchmark(
        measure,
        short={
            **{"traces": Path("none"), "seeds": 1, "share": 0.02, "precision": 1.5},
            "routers": ",".join((Router.LEAST_REQUESTS, BLIND.name, OURS.name)),
        },
        share={"help": "of the seconds of each run"},
        precision={"help": "ratio of the two rates between which the limit is"},
        gateways={"help": "several gateways alone"},
    )
