"""The replicas of least cost that cover what is needed, found exactly.

A search with bounds over the counts of each variant: orders by price per capacity are wrong
wherever a last replica is larger than what is missing.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class CoverOption(NamedTuple):
    """Equal replicas that may be taken."""

    cost: int
    """The cost of each one; costs are compared as sums."""
    capacity: int
    is_firm: bool
    """On nodes that are not reclaimed."""
    most: int
    """How many there are."""


class Need(NamedTuple):
    """What replicas together must have; `most_pods` of None is without a limit."""

    capacity: int
    pods: int = 0
    firm_pods: int = 0
    """Those of the pods that no spot node may have."""
    most_pods: int | None = None

    def beside(self, have: "Need") -> "Need":
        """Return what is needed beside replicas that are there."""
        return Need(
            max(0, self.capacity - have.capacity),
            max(0, self.pods - have.pods),
            max(0, self.firm_pods - have.firm_pods),
            None if self.most_pods is None else max(0, self.most_pods - have.pods),
        )

    def within(self, have: "Need") -> "Need":
        """Return the part of it that replicas have, without a limit."""
        return Need(
            min(self.capacity, have.capacity),
            min(self.pods, have.pods),
            min(self.firm_pods, have.firm_pods),
        )

    @property
    def is_met(self) -> bool:
        """Return whether no replica is needed."""
        return self.capacity <= 0 and self.pods <= 0 and self.firm_pods <= 0


NO_NEED = Need(0)


def sum_of(replicas: Iterable[tuple[int, bool, int]]) -> Need:
    """Return what replicas have together, of each kind its capacity, whether firm, and how many."""
    capacity = pods = firm_pods = 0
    for each, is_firm, count in replicas:
        capacity += each * count
        pods += count
        firm_pods += count if is_firm else 0
    return Need(capacity, pods, firm_pods)


def total_of(options: Sequence[CoverOption], counts: Sequence[int]) -> Need:
    """Return what so many replicas of each option have."""
    taken = zip(options, counts, strict=True)
    return sum_of((option.capacity, option.is_firm, count) for option, count in taken)


def least_cover(options: Sequence[CoverOption], need: Need) -> tuple[int, ...]:
    """Return the counts of least cost that cover a need, as far as the options can.

    What they cannot cover is left out: the limit comes before the floors, and these before the
    capacity.
    """
    order = sorted(
        (index for index, option in enumerate(options) if option.most),
        key=lambda index: (_price(options[index]), index),
    )
    ordered = [options[index] for index in order]
    counts = [0] * len(options)
    for index, count in zip(order, _search(ordered, _attainable(ordered, need)), strict=True):
        counts[index] = count
    return tuple(counts)


def _price(option: CoverOption) -> float:
    return option.cost / option.capacity


def _attainable(options: Sequence[CoverOption], need: Need) -> Need:
    """Return the part of a need that the options can cover."""
    total = sum(option.most for option in options)
    firm = sum(option.most for option in options if option.is_firm)
    limit = total if need.most_pods is None else min(need.most_pods, total)
    firm_pods = min(need.firm_pods, firm, limit)
    pods = max(min(need.pods, limit), firm_pods)
    most = _largest(options, limit, firm_pods)
    return Need(min(need.capacity, most), pods, firm_pods, limit)


def _largest(options: Sequence[CoverOption], limit: int, firm_pods: int) -> int:
    """Return the largest capacity that so many pods have, with so many firm ones among them."""
    capacity, left = 0, [option.most for option in options]
    by_size = sorted(range(len(options)), key=lambda index: -options[index].capacity)
    for only_firm, pods in ((True, firm_pods), (False, limit - firm_pods)):
        missing = pods
        for index in by_size:
            if only_firm and not options[index].is_firm:
                continue
            taken = min(left[index], missing)
            left[index] -= taken
            missing -= taken
            capacity += taken * options[index].capacity
    return capacity


class _State(NamedTuple):
    """What is still needed after the counts of the first options."""

    need: Need
    cost: int
    counts: tuple[int, ...]


def _search(options: Sequence[CoverOption], need: Need) -> tuple[int, ...]:
    best: _State | None = None
    seen: dict[tuple[int, Need], int] = {}
    by_cost = [
        sorted(options[index:], key=lambda option: option.cost) for index in range(len(options))
    ]
    stack = [_State(need, 0, ())]
    while stack:
        state = stack.pop()
        index = len(state.counts)
        if state.need.is_met:
            if best is None or state.cost < best.cost:
                best = state
            continue
        rest = options[index:]
        if not _can_cover(rest, state.need):
            continue
        if best is not None:
            least = max(
                _least_for_capacity(rest, state.need), _least_for_pods(by_cost[index], state.need)
            )
            if state.cost + least >= best.cost:
                continue
        if seen.get((index, state.need), state.cost + 1) <= state.cost:
            continue
        seen[index, state.need] = state.cost
        option = options[index]
        enough = max(
            -(-state.need.capacity // option.capacity),
            state.need.pods,
            state.need.firm_pods if option.is_firm else 0,
        )
        limit = option.most if state.need.most_pods is None else state.need.most_pods
        # The last one that is pushed is tried first.
        for count in range(min(option.most, enough, limit) + 1):
            taken = total_of([option], [count])
            stack.append(
                _State(
                    state.need.beside(taken),
                    state.cost + count * option.cost,
                    (*state.counts, count),
                )
            )
    counts = best.counts if best is not None else ()
    return (*counts, *[0] * (len(options) - len(counts)))


def _can_cover(options: Sequence[CoverOption], need: Need) -> bool:
    attainable = _attainable(options, need)
    return (
        attainable.capacity >= need.capacity
        and attainable.pods >= need.pods
        and attainable.firm_pods >= need.firm_pods
    )


def _least_for_capacity(options: Sequence[CoverOption], need: Need) -> int:
    """Return the cost of the capacity, if parts of replicas could be taken; in order of price."""
    missing, cost = need.capacity, 0
    for option in options:
        if missing <= 0:
            break
        taken = min(missing, option.most * option.capacity)
        cost += taken * option.cost // option.capacity
        missing -= taken
    return cost


def _least_for_pods(options: Sequence[CoverOption], need: Need) -> int:
    """Return the cost of the pods, whatever they carry; in order of cost."""
    missing, cost = need.pods, 0
    for option in options:
        taken = min(missing, option.most)
        cost += taken * option.cost
        missing -= taken
    return cost
