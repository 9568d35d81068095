"""Runs of policies on cases, two at a time, each in a file of its own: a run is made once."""

import hashlib
import json
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

from scale.cases import CASES, COLD, H100, ON_DEMAND, RESERVED, tier_pools
from scale.sources import digest
from tessera_lab.fleet.attainment import AttainmentGoal, attainment_goal
from tessera_lab.fleet.course import Course, best_reservation, cost
from tessera_lab.fleet.disturbance import CALM, Disturbance
from tessera_lab.fleet.hindsight.clairvoyant import clairvoyant_run
from tessera_lab.fleet.instance_types import RecordedTypes
from tessera_lab.fleet.model import COLD_START, FleetModel, Purchase, Router
from tessera_lab.fleet.observation import Policy, Settings
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import OURS, ProductPolicy, router_of
from tessera_lab.fleet.policies.reactive import reactive
from tessera_lab.fleet.prices import PRICE_SETS
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.spot import SpotMarket, spot_market
from tessera_lab.fleet.trace import Trace
from tessera_lab.load.trace_rows import TraceError

COVER, REACTIVE = "cover", "reactive-hindsight"
# The operator's own plan on two pools, one reserved and one on demand that scales from zero.
TIERS = "tessera-tiers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy with its settings on one case."""

    case: str
    policy: str
    settings: tuple[tuple[str, float], ...] = ()
    start_up: str = COLD
    reserved: int = 0
    """Nodes that are reserved beforehand; 0 takes the number that is cheapest in hindsight, except
    for `TIERS`."""
    hours: float = 2.0
    tuning: bool = False
    disturbance: str = "calm"
    router: Router | None = None
    """None is the policy's own."""
    gpus: int | None = None
    """GPUs of a replica; None leaves them to the product."""
    seed: int = 1
    """Of what a run draws, such as the start-ups of its replicas."""

    @property
    def label(self) -> str:
        """Return the policy, with its router where that is not its own."""
        return self.policy if self.router is None else f"{self.policy}, {self.router}"

    @property
    def file(self) -> str:
        """Return the name of its result."""
        digest = hashlib.sha256(repr(self.settings).encode()).hexdigest()[:8]
        part = "tuning" if self.tuning else "scored"
        suffix = f"-{self.router}" if self.router is not None else ""
        suffix += f"-{self.gpus}gpu" if self.gpus is not None else ""
        return (
            f"{self.case}-{part}-{self.hours:g}h/{self.start_up}-{self.disturbance}/"
            f"{self.policy}-{self.reserved}-{digest}{suffix}-seed{self.seed}.json"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a run."""

    run: Run
    requests: int
    share: float
    window_share: float
    sufficient: bool
    replica_hours: float
    gpu_hours: dict[str, float]
    """By the GPUs of a replica."""
    paid_seconds: float
    """End of the last request, or of the trace if that is later."""
    usd_on_demand: dict[str, float]
    """All replicas on demand, by price set."""
    usd: dict[str, float]
    """With the number of reserved nodes that costs least."""
    reserved: dict[str, int]
    changes_per_hour: float
    broken_streams: int
    longest_wait: float
    """Seconds for which a replica waited for a node while another pool had one for it."""
    cpu_seconds: float
    initial: int
    """Replicas at the start."""


DISTURBANCES = {
    "calm": CALM,
    "slow-start": Disturbance(start_up_factor=2.0),
    "late-metrics": Disturbance(metrics_delay=60.0),
    "slower": CALM,
    "faster": CALM,
    "spot-blackout": CALM,
}
# Disturbances of fleets of two tiers alone: a pool that is full for a while, which begins with the
# steepest ramp, and nodes on demand that take a while.
FULL_POOLS = {"full-reserved": RESERVED, "full-on-demand": ON_DEMAND}
SLOW_NODES = "slow-nodes"
_FULL_SECONDS, _NODE_SECONDS = 600.0, 300.0
_BLACKOUT_SECONDS = 3600.0
# Engines that are slower than their profile, by how much; prompts may be alone.
SLOW_ENGINES = {"1.3-times-slower": 1.3, "1.5-times-slower": 1.5, "2-times-slower": 2.0}
SLOW_PROMPTS = "prompts-2-times-slower"
_SPEEDS = {"slower": 1.3, "faster": 1 / 1.3, "1.5-times-faster": 1 / 1.5} | SLOW_ENGINES


def play(run: Run, traces: Path, initial: int) -> Result:
    """Simulate a run whose fleet has so many replicas at the start."""
    began = time.process_time()
    trace, goal, fleet = _stage(run, traces)
    fleet = replace(
        fleet, router=run.router or router_of(OURS if run.policy == TIERS else run.policy)
    )
    if run.policy == COVER:
        clairvoyant = clairvoyant_run(trace, fleet, goal)
        course, initial = clairvoyant.course, max(1, clairvoyant.schedule[0][1])
    else:
        initial = int(dict(run.settings).get("replicas", initial))
        types = _types(run, fleet, traces)
        if types is not None:
            fleet = replace(fleet, pools=types.pools(fleet))
            initial = -(-initial // fleet.pools[0].size)
        policy = _policy(run, fleet, trace, types)
        course = Simulation(
            trace,
            replace(fleet, initial_replicas=initial),
            policy,
            seed=run.seed,
            disturbance=_disturbance(run, trace),
            spot=_blackout(trace, fleet) if fleet.purchase.spot else None,
        ).run()
    score = goal.score(zip(trace.arrivals, course.ttft, strict=True))
    return Result(
        run=run,
        requests=len(trace),
        share=score.share,
        window_share=score.window_share,
        sufficient=score.sufficient,
        changes_per_hour=course.changes / trace.seconds * 3600,
        cpu_seconds=time.process_time() - began,
        initial=initial,
        **_costs(run, course, fleet.gpus),
    )


def _stage(run: Run, traces: Path) -> tuple[Trace, AttainmentGoal, FleetModel]:
    case = CASES[run.case]
    fleet = case.fleet(run.start_up, run.reserved, run.gpus)
    if run.policy == TIERS:
        start_seconds = _NODE_SECONDS if run.disturbance == SLOW_NODES else 0.0
        fleet = replace(fleet, pools=tier_pools(run.reserved, start_seconds))
    if ratio := _SPEEDS.get(run.disturbance):
        fleet = replace(fleet, step=fleet.step.scaled(ratio, "Measured"))
    elif run.disturbance == SLOW_PROMPTS:
        fleet = replace(fleet, step=fleet.step.stretched(1.0, 2.0))
    trace = case.trace(traces, run.hours, tuning=run.tuning)
    if run.disturbance == "spot-blackout":
        fleet = replace(fleet, purchase=Purchase(spot=True))
    return trace, attainment_goal(trace.seconds, COLD_START.high), fleet


def _disturbance(run: Run, trace: Trace) -> Disturbance:
    if (pool := FULL_POOLS.get(run.disturbance)) is not None:
        begin = trace.seconds / 2
        return Disturbance(full_pools=((begin, begin + _FULL_SECONDS),), full_pool=pool)
    return DISTURBANCES.get(run.disturbance, CALM)


def _blackout(trace: Trace, fleet: FleetModel) -> SpotMarket:
    """Return a market that takes all nodes back in the middle of the trace."""
    begin = max(0.0, (trace.seconds - _BLACKOUT_SECONDS) / 2)
    market = spot_market([(0.0, fleet.max_replicas)])
    return market.without([(begin, begin + _BLACKOUT_SECONDS)])


def _types(run: Run, fleet: FleetModel, traces: Path) -> RecordedTypes | None:
    """Return the instance types among which the hours before the run decide; None without them."""
    if run.policy != OURS or run.tuning or run.gpus or fleet.purchase != Purchase():
        return None
    case, start = CASES[run.case], timedelta(seconds=fleet.start_up.mean)
    scored = case.trace(traces, run.hours).seconds
    return case.objects().types(case.load_until_end(traces, run.hours), scored, start)


def _policy(run: Run, fleet: FleetModel, trace: Trace, types: RecordedTypes | None) -> Policy:
    settings: Settings = dict(run.settings)
    if types is not None:
        return ProductPolicy(CASES[run.case].objects(), types=types)
    if run.policy in (OURS, TIERS):
        return ProductPolicy(CASES[run.case].objects(fleet.pools, run.gpus))
    family = reactive(trace, fleet.replica) if run.policy == REACTIVE else FAMILIES[run.policy]
    return family.create({**family.published, **settings}, fleet.replica)


def _costs(run: Run, course: Course, gpus: int) -> dict[str, Any]:
    """Return what a course costs, of replicas with so many GPUs or a multiple of them."""
    prices = {name: by_gpu[H100] for name, by_gpu in PRICE_SETS.items()}
    best = {name: best_reservation(course, each, gpus) for name, each in prices.items()}
    if run.reserved or run.policy == TIERS:
        purchase = Purchase(reserved=run.reserved)
        best = {
            name: (run.reserved, cost(course, each, purchase, gpus))
            for name, each in prices.items()
        }
    gpu_seconds = defaultdict[int, float](float)
    for lifetime in course.lifetimes:
        size = lifetime.size * gpus
        gpu_seconds[size] += (lifetime.end - lifetime.begin) * size
    return {
        "paid_seconds": course.paid_seconds,
        "replica_hours": course.replica_seconds / 3600,
        "gpu_hours": {str(size): seconds / 3600 for size, seconds in sorted(gpu_seconds.items())},
        "usd_on_demand": {
            name: cost(course, each, Purchase(), gpus) for name, each in prices.items()
        },
        "usd": {name: usd for name, (_, usd) in best.items()},
        "reserved": {name: reserved for name, (reserved, _) in best.items()},
        "broken_streams": course.broken_streams,
        "longest_wait": course.longest_wait,
    }


def _fleet_digest(run: Run) -> str:
    """Return the digest of a run's fleet, which the product sizes also for rivals."""
    return _digest_of_fleet(run.case, run.start_up, run.reserved, run.gpus)


def _fleet_key(run: Run) -> tuple[str, int]:
    """Return the case whose first replicas a run has, and their GPUs."""
    return CASES[run.case].beside or run.case, run.gpus or 1


@cache
def _digest_of_fleet(case: str, start_up: str, reserved: int, gpus: int | None) -> str:
    fleet = CASES[case].fleet(start_up, reserved, gpus)
    return hashlib.sha256(repr(fleet).encode()).hexdigest()[:8]


class Runs:
    """Plays runs on two cores; a result that has a file is read from there.

    As a context it ends its workers, and says what it has when it ends early.
    """

    def __init__(self, traces: Path, folder: Path, workers: int = 2) -> None:
        self._traces, self._folder = traces, folder
        # A worker ends at once, and silently, on Ctrl-C.
        initializer = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self._pool = ProcessPoolExecutor(workers, initializer=initializer)
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.close()
        if isinstance(error, TraceError):
            raise SystemExit(str(error)) from None
        if isinstance(error, (KeyboardInterrupt, BrokenProcessPool)):
            print(
                f"ended early: {self._made} runs are in {self._folder}; the same command goes on "
                "from there"
            )
            raise SystemExit(130) from None

    def close(self) -> None:
        """End the workers; runs that have not begun are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def results(
        self, runs: Sequence[Run], initial: Mapping[tuple[str, int], int]
    ) -> dict[Run, Result]:
        """Return the result of each run.

        `initial` are the first replicas by case and GPUs of each; the product's begin with those of
        one.
        """
        results = {run: result for run in runs if (result := self._stored(run)) is not None}
        futures = {
            self._pool.submit(play, run, self._traces, initial.get(_fleet_key(run), 1)): run
            for run in dict.fromkeys(runs)
            if run not in results
        }
        for future in as_completed(futures):
            result = future.result()
            results[result.run] = result
            self._store(result)
            self._made += 1
            print(row(result), flush=True)
        return results

    def _stored(self, run: Run) -> Result | None:
        path = self._path(run)
        if not path.exists():
            return None
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Result(**{**fields, "run": run})

    def _path(self, run: Run) -> Path:
        """Return the file of a run, which is another one when what plays it is edited."""
        sources = digest(product=run.policy in (OURS, TIERS))
        return self._folder / f"{sources}-{_fleet_digest(run)}" / run.file

    def _store(self, result: Result) -> None:
        path = self._path(result.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(result), indent=1)
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


HEAD = (
    f"{'case':8}{'start':16}{'policy':22}{'GPUs':>4}{'in time':>8}{'windows':>8}{'replica h':>10}"
    f"{'on demand':>10}{'mix':>9}{'(R)':>5}{'neo mix':>9}{'changes/h':>10}{'broken':>7}  settings"
)


def row(result: Result) -> str:
    """Return the line of a result."""
    run = result.run
    start = run.start_up if run.disturbance == "calm" else run.disturbance
    mark = " " if result.sufficient else "!"
    sizes = "+".join(result.gpu_hours)
    settings = " ".join(f"{name}={value:g}" for name, value in run.settings)
    return (
        f"{run.case:8}{start:16}{run.label:22}{sizes:>4}{result.share:8.4f}{result.window_share:7.3f}{mark}"
        f"{result.replica_hours:10.2f}{result.usd_on_demand['aws-2026']:10.2f}"
        f"{result.usd['aws-2026']:9.2f}{result.reserved['aws-2026']:5d}"
        f"{result.usd['neo-2026']:9.2f}{result.changes_per_hour:10.1f}{result.broken_streams:7d}"
        f"  {settings}"
    )


def with_settings(run: Run, settings: Iterable[Settings]) -> Iterator[Run]:
    """Yield the run with each of the settings."""
    for each in settings:
        yield replace(run, settings=tuple(sorted(each.items())))
