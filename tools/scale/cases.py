"""The cases of the comparison: a trace, its model and hardware, and which part is scored."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from tessera.domain.observed.snapshot import Ref
from tessera_lab.fleet.model import (
    COLD_START,
    WARM_START,
    FleetModel,
    NodePool,
    Purchase,
    Tier,
)
from tessera_lab.fleet.policies.product import FleetObjects, WholeGpuPool
from tessera_lab.fleet.prices import PRICE_SETS
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace
from tessera_lab.load.trace_rows import TraceError

TRACES = Path(__file__).parents[3] / "shared" / "traces"
H100 = "NVIDIA-H100-80GB-HBM3"
HOUR = 3600.0
MAX_REPLICAS = 48
# Pools of a fleet of two tiers.
RESERVED, ON_DEMAND = "reserved", "on-demand"
_RAMP_SECONDS, _SURGE_SECONDS = 900.0, 600.0
_SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


class Hours(StrEnum):
    """Which hours of a trace are scored."""

    RAMP = "ramp"
    """Those around the steepest ramp."""
    OTHERS = "others"
    """All but these, in which nothing was tuned or chosen."""
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One load on one kind of replica."""

    name: str
    file: str
    copies: int = 1
    """Copies of the trace on top of each other."""
    shift: float = 0.0
    """Seconds between two copies."""
    scored: tuple[float, float] | None = None
    """Hours of the trace that may be scored; None is all of them."""
    tuned: tuple[float, float] | None = None
    """Hours of `tuning_file` that policies are tuned on; None is what is scored."""
    tuning_file: str | None = None
    tuning_copies: int = 1
    model: str = "hf://Qwen/Qwen3-32B-FP8"
    typical_tokens: tuple[int, int] = (1100, 200)
    """Of a prompt and an answer, as a user would estimate them."""
    max_model_len: int = 32_768
    drain: str = "10m"
    queued: bool = True
    """Whether requests wait, so that it matters in which queue."""
    hindsight: bool = True
    """Whether the reactive policy is tuned on what is scored."""
    min_replicas: int = 1
    beside: str | None = None
    """The case that this is a variant of, which has no rivals of its own."""
    hours: Hours = Hours.RAMP
    surge: int = 1
    """Times the usual length that prompts have in the middle ten minutes of what is scored."""

    def trace(self, traces: Path, hours: float, *, tuning: bool = False) -> Trace:
        """Return the part that is scored, or tuned on: so many hours around the steepest ramp."""
        return _played(self, traces, hours, tuning)

    def load_until_end(self, traces: Path, hours: float) -> Trace:
        """Return what is scored, after the hours that were recorded before it."""
        if self.hours is Hours.RAMP:
            whole = self.recorded(traces)
            return whole.cut(0.0, ramp(whole, hours)[1]).fitting(self.max_model_len)
        scored = self.trace(traces, hours)
        if self.hours is Hours.OTHERS or self.tuning_file is None:
            return scored
        return _joined(self.recorded(traces, tuning=True).fitting(self.max_model_len), scored)

    def recorded(self, traces: Path, *, tuning: bool = False) -> Trace:
        """Return all hours that may be scored, or tuned on."""
        file = (self.tuning_file or self.file) if tuning else self.file
        copies = self.tuning_copies if tuning and self.tuning_file else self.copies
        return _overlaid(traces / file, copies, self.shift, self.tuned if tuning else self.scored)

    def objects(self, pools: Sequence[NodePool] = (), gpus: int | None = None) -> FleetObjects:
        """Return the manifests, as users and platform teams would write them.

        Without pools there is one on demand, as the simulator has it for what it reserves, too.
        `gpus` are those of a replica; None leaves them to the product.
        """
        prompt, answer = self.typical_tokens
        spec: dict[str, Any] = {
            "model": {"uri": self.model},
            "slo": {"ttftP95": "1s", "itlP95": "50ms"},
            "context": {
                "typicalInputTokens": prompt,
                "typicalOutputTokens": answer,
                "maxModelLen": self.max_model_len,
            },
            "scaling": {"minReplicas": self.min_replicas, "maxReplicas": MAX_REPLICAS},
            "drain": {"timeout": self.drain},
        }
        if gpus is not None:
            spec["engine"] = {"tensorParallelSize": gpus}
        # A case may have a name that no object can have.
        ref = Ref("lab", "service")
        if not pools:
            # Of 8 GPUs each, and one to spare.
            nodes = MAX_REPLICAS * (gpus or 1) // 8 + 1
            return WholeGpuPool(name="h100", product=H100, price="6.88", nodes=nodes).objects(
                ref, spec
            )
        first, *others = (_pool_objects(pool, gpus or 1) for pool in pools)
        objects = first.objects(ref, spec)
        for pool in others:
            objects = pool.beside(objects)
        return objects

    def fleet(self, start_up: str, reserved: int, gpus: int | None = None) -> FleetModel:
        """Return the fleet that the product sizes from the manifests."""
        objects = self.objects(gpus=gpus)
        fleet = sized_fleet(
            objects.spec,
            objects.choice().fit,
            start_up=WARM_START if start_up == HYPOTHETICAL else COLD_START,
            purchase=Purchase(reserved=reserved),
        )
        if start_up != WARM:
            return fleet
        return replace(fleet, held_start_up=WARM_START, node_hold=NODE_HOLD)


def tier_pools(reserved: int, start_seconds: float = 0.0) -> tuple[NodePool, ...]:
    """Return a pool of so many reserved nodes, if any, and one that scales from zero on demand."""
    on_demand = NodePool(name=ON_DEMAND, tier=Tier.ON_DEMAND, start_seconds=start_seconds)
    if not reserved:
        return (on_demand,)
    return NodePool(name=RESERVED, tier=Tier.RESERVED, nodes=reserved), on_demand


def _pool_objects(pool: NodePool, gpus: int) -> WholeGpuPool:
    """Return a pool whose nodes have room for a replica of so many GPUs each."""
    prices = PRICE_SETS["aws-2026"][H100]
    price = prices.reserved if pool.tier is Tier.RESERVED else prices.on_demand
    return WholeGpuPool(
        name=pool.name,
        product=H100,
        price=str(price),
        nodes=0 if pool.nodes is None else 1,
        gpus=(pool.nodes or 1) * gpus,
        tier=pool.tier,
        max_nodes=MAX_REPLICAS if pool.nodes is None else 0,
        start_seconds=pool.start_seconds,
    )


CASES = {
    case.name: case
    for case in (
        Case(
            name="mlarge",
            file="servegen_mlarge_d3_24h_x4.csv.gz",
            tuning_file="servegen_mlarge_d2-3_48h.csv.gz",
            tuning_copies=4,
            tuned=(0, 24),
            shift=900,
            hindsight=False,
        ),
        Case(name="conv", file="azure2023_conv.csv.gz", copies=4, shift=300),
        Case(
            name="r1",
            file="servegen_r1_d0_24h.csv.gz",
            copies=2,
            shift=600,
            tuned=(0, 4),
            scored=(4, 24),
            typical_tokens=(1300, 1500),
        ),
        Case(
            name="msmall",
            file="servegen_msmall_d7_24h.csv.gz",
            tuned=(0, 8),
            scored=(8, 24),
            model="hf://meta-llama/Llama-3.1-8B-Instruct",
            typical_tokens=(90, 15),
            queued=False,
            hindsight=False,
        ),
        Case(
            name="code",
            file="azure2023_code.csv.gz",
            model="hf://meta-llama/Llama-3.1-8B-Instruct",
            typical_tokens=(2000, 30),
            hindsight=False,
        ),
    )
}

# With `warm-10`, engines sleep on reserved nodes, and on others that are held, and paid, for a
# while after their replica. A start-up of 10 s for nothing says what the lag of a cold one costs.
COLD, WARM, HYPOTHETICAL = "cold", "warm-10", "hypothetical-10"
NODE_HOLD = 600.0


# Variants, which stand beside their cases on the page.
CASES |= {
    case.name: case
    for case in (
        # With the default of `spec.scaling.minReplicas`.
        replace(CASES["r1"], name="r1-default", beside="r1", min_replicas=2),
        replace(CASES["r1"], name="r1-others", beside="r1", hours=Hours.OTHERS),
        replace(CASES["mlarge"], name="mlarge-day", beside="mlarge", hours=Hours.ALL),
        replace(CASES["conv"], name="conv-surge", beside="conv", surge=3),
        replace(CASES["r1"], name="r1-surge", beside="r1", surge=3),
    )
}


@lru_cache(maxsize=8)
def _played(case: Case, traces: Path, hours: float, tuning: bool) -> Trace:
    whole = case.recorded(traces, tuning=tuning)
    begin, end = ramp(whole, hours)
    # What is tuned on is as long for a variant.
    if tuning or case.hours is Hours.RAMP:
        whole = whole.cut(begin, end)
    elif case.hours is Hours.OTHERS:
        whole = _without(whole, begin, end)
    if case.surge > 1:
        whole = _with_surge(whole, case.surge)
    return whole.fitting(case.max_model_len)


def _with_surge(trace: Trace, times: int) -> Trace:
    """Return a trace whose prompts are so many times as long for ten minutes in its middle."""
    begin, end = (trace.seconds / 2 + side * _SURGE_SECONDS / 2 for side in (-1, 1))
    rows = zip(trace.arrivals, trace.input_tokens, strict=True)
    prompts = (tokens * times if begin <= at < end else tokens for at, tokens in rows)
    return replace(trace, input_tokens=array("i", prompts))


@lru_cache(maxsize=2)
def _overlaid(path: Path, copies: int, shift: float, part: tuple[float, float] | None) -> Trace:
    trace = read_trace(str(path))
    if part is not None:
        end = min(part[1] * HOUR, trace.seconds)
        trace = trace.cut(part[0] * HOUR, end)
    return trace.overlaid(copies, shift) if copies > 1 else trace


def _without(trace: Trace, begin: float, end: float) -> Trace:
    """Return a trace whose hours between two moments are left out: what follows joins on."""
    length = end - begin
    rows = [row for row, arrival in enumerate(trace.arrivals) if not begin <= arrival < end]
    rest = trace.select(rows)
    arrivals = (at if at < begin else at - length for at in rest.arrivals)
    return replace(rest, arrivals=array("d", arrivals), seconds=trace.seconds - length)


def _joined(first: Trace, second: Trace) -> Trace:
    """Return the requests of a trace after those of another, without their clients."""
    return Trace(
        name=second.name,
        seconds=first.seconds + second.seconds,
        arrivals=first.arrivals + array("d", (first.seconds + at for at in second.arrivals)),
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
    )


def ramp(trace: Trace, hours: float) -> tuple[float, float]:
    """Return the window of so many hours around the steepest ramp; all of a shorter trace."""
    if trace.seconds <= hours * HOUR:
        return 0.0, trace.seconds
    begin = ramp_begin(trace, hours)
    return begin, begin + hours * HOUR


def ramp_begin(trace: Trace, hours: float) -> float:
    """Return the begin of the window whose middle has the steepest ramp of arrivals."""
    counts = [0] * (int(trace.seconds // _RAMP_SECONDS) + 1)
    for arrival in trace.arrivals:
        counts[int(arrival // _RAMP_SECONDS)] += 1
    whole = int(trace.seconds // _RAMP_SECONDS)
    rises = {slot: counts[slot] - counts[slot - 1] for slot in range(1, whole)}
    steepest = max(rises, key=lambda slot: rises[slot], default=0)
    begin = steepest * _RAMP_SECONDS - hours * HOUR / 2
    return max(0.0, min(begin, trace.seconds - hours * HOUR))


def find_cases(traces: Path, chosen: str | None) -> list[str]:
    """Return the names of the chosen cases, of all whose trace is in a folder without a choice.

    In a folder that has none of their traces, each trace is a case of its own, on the hardware of
    the large one. Raises TraceError with what is wrong.
    """
    present = {name: case for name, case in CASES.items() if (traces / case.file).exists()}
    if not present:
        present = {case.name: case for case in _unknown_cases(traces)}
    if not present:
        raise TraceError(
            f"{traces} has no trace: name a folder with files such as {CASES['conv'].file}, or "
            "with CSV files of the columns arrival_s, input_tokens and output_tokens"
        )
    CASES.update(present)
    names = (
        chosen.split(",")
        if chosen
        else [name for name, case in present.items() if case.beside is None]
    )
    for name in names:
        if name not in present:
            raise TraceError(f"no case {name} in {traces}; choose from {', '.join(present)}")
    return names


def _unknown_cases(traces: Path) -> Iterator[Case]:
    """Return a case for each file; a name that several files share is followed by what differs.

    Raises TraceError for a file without requests that the hardware can serve.
    """
    paths = sorted(path for suffix in _SUFFIXES for path in traces.glob(f"*{suffix}"))
    whole = [read_trace(str(path)) for path in paths]
    names = Counter(trace.name for trace in whole)
    for path, trace in zip(paths, whole, strict=True):
        name = trace.name if names[trace.name] == 1 else path.name
        case = Case(name=name, file=path.name)
        played = trace.fitting(case.max_model_len)
        if not len(played):
            raise TraceError(
                f"{path}: 0 of {len(trace)} requests have at most {case.max_model_len} tokens"
            )
        prompt, answer = (
            max(1, round(sum(tokens) / len(played)))
            for tokens in (played.input_tokens, played.output_tokens)
        )
        yield replace(case, typical_tokens=(prompt, answer))
