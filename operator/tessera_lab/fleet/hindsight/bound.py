"""A cost that no policy undercuts which serves a trace and attains a goal.

It is the optimum of a linear program that every such run fulfills; docs/bound.md has the proof.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from tessera.domain.mig.integer_program import INFINITY, IntegerProgram
from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.hindsight.slot_work import SPAN_SLOTS, SlotWork, slot_work
from tessera_lab.fleet.hindsight.work import trace_work
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.spot import SpotMarket
from tessera_lab.fleet.trace import Trace

HOUR = 3600.0
# The solver's tolerance, as a share of the optimum.
_TOLERANCE = 1e-6

# Columns with their coefficients.
_Terms = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What nodes a fleet may use and what they cost."""

    prices: GpuPrices
    gpus: int = 1
    """GPUs of a replica."""
    reserved: bool = True
    """Whether nodes may be reserved for the whole time; on demand they can always be had."""
    spot: SpotMarket | None = None
    start_seconds: float = 0.0
    """Least time for which a replica is paid before it is ready, except at the start."""
    min_replicas: int = 0
    """Replicas that are there, ready or draining, at every moment of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What every fleet takes at least that serves a trace and attains a goal."""

    usd: float
    replica_seconds: float
    """Paid time of replicas, at whatever price."""
    work_seconds: float
    """The least engine time of all requests, which `replica_seconds` includes."""
    reserved: int
    """Reserved nodes of the cheapest fleet that the bound allows."""


def lower_bound(
    trace: Trace,
    replica: ReplicaModel,
    goal: AttainmentGoal,
    supply: Supply,
    ends_by: float = INFINITY,
) -> Bound:
    """Return what no policy undercuts whose last request ends by then, without lost streams.

    The engines are as fast as the replica or slower; `ends_by` is in seconds since the start of the
    trace.
    """
    work = trace_work(trace, replica)
    slots = slot_work(trace, replica, goal, work)
    unit = GpuPrices(on_demand=1.0, reserved=1.0, spot=1.0)
    plain = replace(supply, prices=unit, gpus=1, reserved=False, spot=None)
    priced = _Relaxation(slots, goal, supply, ends_by)
    mean = int(work.total / trace.seconds)
    reserved, cost = _best_reserved(priced, mean) if supply.reserved else (0, priced.optimum(0))
    return Bound(
        usd=cost * supply.gpus,
        replica_seconds=_Relaxation(slots, goal, plain, ends_by).optimum(0) * HOUR,
        work_seconds=work.total,
        reserved=reserved,
    )


def _best_reserved(relaxation: "_Relaxation", first: int) -> tuple[int, float]:
    """Return the best number of reserved nodes with its cost, which is convex in the number."""
    costs = {first: relaxation.optimum(first), first + 1: relaxation.optimum(first + 1)}
    step = 1 if costs[first + 1] < costs[first] else -1
    best = first + 1 if step > 0 else first
    while best + step >= 0:
        costs[best + step] = relaxation.optimum(best + step)
        if costs[best + step] >= costs[best]:
            break
        best += step
    return best, costs[best]


class _Relaxation:
    """The linear program; capacity is in replicas, work in slots of one replica."""

    def __init__(
        self, work: SlotWork, goal: AttainmentGoal, supply: Supply, ends_by: float
    ) -> None:
        self._work, self._goal, self._supply = work, goal, supply
        self._slots_after = max(0.0, ends_by - work.seconds) / work.slot_seconds
        self._columns: list[tuple[float, float, float]] = []
        self._entries: list[list[tuple[int, float]]] = []
        self._rows: list[float] = []
        prices = supply.prices
        self._reserved = self._column(prices.reserved * work.seconds / work.slot_seconds)
        # Work after the last slot, by reserved nodes and by others.
        self._afterwards = (
            self._column(prices.reserved),
            self._column(
                prices.on_demand if supply.spot is None else min(prices.on_demand, prices.spot)
            ),
        )
        self._add_rows()

    def optimum(self, reserved: int) -> float:
        """Return the least cost with so many reserved nodes, in the currency of the prices.

        Prices are per hour.
        """
        most_after = reserved * self._slots_after if reserved else 0.0
        self._limit(self._reserved, float(reserved), float(reserved))
        self._limit(self._afterwards[0], 0.0, most_after)
        program = IntegerProgram()
        for row in self._rows:
            program.add_row(row)
        for (cost, least, most), entries in zip(self._columns, self._entries, strict=True):
            program.add_column(cost, entries, least, most)
        solution = program.solve_relaxed()
        if solution is None:
            raise RuntimeError("the program of the bound has no optimum")
        return solution.value * self._work.slot_seconds / HOUR * (1 - _TOLERANCE)

    def _add_rows(self) -> None:
        slots = self._work.slots
        nodes = [[self._reserved, *tiers] for tiers in zip(*self._tiers(), strict=True)]
        # Not in the last slot, in which the trace ends.
        for capacity in nodes[:-1] if self._supply.min_replicas else ():
            terms = [(column, 1.0) for column in capacity]
            self._row(float(self._supply.min_replicas), terms)
        late = [self._column(0.0, slot.requests) for slot in slots]
        repeated = [self._column(0.0) for _ in slots]
        self._limit_late(late)
        # Running sums: capacity and the work that is not due; capacity less repeated work.
        due, done = [self._column(0.0, 0.0)], [self._column(0.0, 0.0)]
        for number, capacity in enumerate(nodes):
            saved = self._saved(number, late[number], repeated[number])
            added = [(column, 1.0) for column in capacity]
            due.append(self._sum(due[-1], [*added, *[(column, 1.0) for column in saved]]))
            done.append(self._sum(done[-1], [*added, (repeated[number], -1.0)]))
        self._require_due(due)
        self._require_done(done)

    def _tiers(self) -> Iterator[list[int]]:
        """Yield the columns of each tier that is paid by time: ready replicas by slot."""
        supply, count = self._supply, len(self._work.slots)
        tiers = [(supply.prices.on_demand, [INFINITY] * count)]
        if supply.spot is not None:
            tiers.append((supply.prices.spot, self._spot_nodes(supply.spot)))
        for price, limits in tiers:
            columns = [self._column(price, limit) for limit in limits]
            if supply.start_seconds:
                for before, after in pairwise(columns):
                    started = self._column(price * supply.start_seconds / self._work.slot_seconds)
                    self._row(0.0, [(started, 1.0), (before, 1.0), (after, -1.0)])
            yield columns

    def _spot_nodes(self, market: SpotMarket) -> list[float]:
        """Return the most nodes of each slot; after a notice they still run."""
        length = self._work.slot_seconds
        most = []
        for number in range(len(self._work.slots)):
            begin, end = number * length - market.notice, (number + 1) * length + market.notice
            inside = [nodes for at, nodes in market.capacity if begin < at <= end]
            most.append(float(max(inside, default=0)))
            most[-1] = max(most[-1], float(market.available(max(0.0, begin))))
        return most

    def _limit_late(self, late: Sequence[int]) -> None:
        """Allow as many late requests as the goal does, overall and by window."""
        goal, slots = self._goal, self._work.slots
        windows: dict[int, list[int]] = {}
        for number, slot in enumerate(slots):
            if slot.requests:
                window = int(number * self._work.slot_seconds // goal.window)
                windows.setdefault(window, []).append(number)
        total = sum(slot.requests for slot in slots)
        self._at_most(total - goal.required_requests(total), [(column, 1.0) for column in late])
        given_up = []
        for numbers in windows.values():
            requests = sum(slots[number].requests for number in numbers)
            allowed = requests - goal.required_requests(requests)
            given_up.append(self._column(0.0, 1.0))
            terms = [(late[number], 1.0) for number in numbers]
            self._at_most(allowed, [*terms, (given_up[-1], allowed - requests)])
        self._at_most(
            len(windows) - goal.required_windows(len(windows)),
            [(column, 1.0) for column in given_up],
        )

    def _saved(self, number: int, late: int, repeated: int) -> list[int]:
        """Return the work that is not due: of late requests, and of decodes that are preempted."""
        work, slot = self._work, self._work.slots[number]
        if not slot.requests:
            return []
        spared, put_off = self._column(0.0, slot.timely), self._column(0.0, slot.decode)
        for slope, excess in zip(work.late_slopes, slot.late_excess, strict=True):
            self._at_most(excess, [(spared, 1.0), (late, -slope)])
        for slope, excess in zip(work.decode_slopes, slot.decode_excess, strict=True):
            self._at_most(excess, [(put_off, 1.0), (repeated, -slope)])
        return [spared, put_off]

    def _require_due(self, due: Sequence[int]) -> None:
        """Let each span have the capacity for what comes and is due in it."""
        slots = self._work.slots
        by_end = [list(accumulate(slot.due)) for slot in slots]
        span = 1
        while span <= min(SPAN_SLOTS, len(slots)):
            for begin in range(len(slots) - span + 1):
                numbers = range(begin, begin + span)
                work = sum(by_end[number][begin + span - 1 - number] for number in numbers)
                self._row(work, [(due[begin + span], 1.0), (due[begin], -1.0)])
            span *= 2

    def _require_done(self, done: Sequence[int]) -> None:
        """Let what comes from a slot on be done from there on, or after the last slot."""
        afterwards = [(column, 1.0) for column in self._afterwards]
        left = 0.0
        for number in reversed(range(len(self._work.slots))):
            left += self._work.slots[number].work
            self._row(left, [(done[-1], 1.0), (done[number], -1.0), *afterwards])

    def _column(self, cost: float, most: float = INFINITY, least: float = 0.0) -> int:
        self._columns.append((cost, least, most))
        self._entries.append([])
        return len(self._columns) - 1

    def _limit(self, column: int, least: float, most: float) -> None:
        self._columns[column] = (self._columns[column][0], least, most)

    def _row(self, least: float, terms: _Terms) -> None:
        for column, coefficient in terms:
            self._entries[column].append((len(self._rows), coefficient))
        self._rows.append(least)

    def _at_most(self, most: float, terms: _Terms) -> None:
        self._row(-most, [(column, -coefficient) for column, coefficient in terms])

    def _sum(self, before: int, terms: _Terms) -> int:
        """Return a column of at most the sum of a column and the terms."""
        column = self._column(0.0, least=-INFINITY)
        self._row(0.0, [(before, 1.0), *terms, (column, -1.0)])
        return column
