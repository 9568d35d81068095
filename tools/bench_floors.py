"""Healthy replicas that generated fleets lose, whatever meets in them: `make bench-floors`.

Each fleet is judged at its rest, and then after one event with the next plan and the controllers'
next steps; each sequence is played to its rest, and so is each drawn one, which has 5 to 40 events
of more kinds. `--known` prints the seeds of the sequences that fail, by the reason that is
probable; `--shrink` prints the events that each drawn one needs to fail. The last line is
`BENCH {json}`.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from functools import partial
from multiprocessing import get_context

from figures import benchmark
from tests.floors.drawn import play as drawn
from tests.floors.drawn.verdict import Verdict as DrawnVerdict
from tests.floors.known import probable_reason
from tests.floors.neighbours import neighbour_raises
from tests.floors.player import FloorPlay, Verdict, play_one_step

_LOOK_EVERY = 500


async def _fleets(count: int) -> list[Verdict]:
    verdicts = []
    for seed in range(1, count + 1):
        verdicts.append(await play_one_step(seed))
        if seed % _LOOK_EVERY == 0:
            print(f"{seed} of {count} fleets, {time.process_time():.0f} CPU s", flush=True)
    return verdicts


async def _sequences(count: int, failing: dict[str, list[int]]) -> list[Verdict]:
    verdicts = []
    for seed in range(1, count + 1):
        play = FloorPlay(seed)
        verdict = await play.run()
        verdicts.append(verdict)
        if not verdict.is_clean:
            failing[probable_reason(verdict)].append(seed)
    return verdicts


def _play_drawn(seed: int, *, shrinks: bool) -> tuple[DrawnVerdict, float, Sequence[str]]:
    """Play one drawn sequence in its own loop; return the verdict, CPU seconds, and what to read.

    A sequence that raises is a finding, and the others go on.
    """
    logging.disable(logging.CRITICAL)
    begun, play = time.process_time(), drawn.Play(seed)
    try:
        verdict = asyncio.run(play.run())
        needed = asyncio.run(_needed(play, verdict)) if shrinks and not verdict.is_clean else ()
    except Exception as error:  # noqa: BLE001 - whatever a sequence raises
        text = f"{type(error).__name__}: {error}"
        verdict, needed = DrawnVerdict(seed, 0, 1, 0, findings=(text,)), play.log[-3:]
    return verdict, time.process_time() - begun, needed


async def _needed(play: drawn.Play, verdict: DrawnVerdict) -> Sequence[str]:
    """Return the events without which the first finding is not found."""
    first = _kind_of(verdict.findings[0])
    events = drawn.drawn_events(play.seed)

    async def finds(fewer: Sequence[drawn.Event]) -> bool:
        shorter = await drawn.Play(play.seed, fewer).run()
        return any(_kind_of(finding) == first for finding in shorter.findings)

    return [event.describe() for event in await drawn.shrunk(events, finds)]


def _kind_of(finding: str) -> str:
    """Return the words of a finding by which it is the same in a shorter sequence."""
    words = (word for word in finding.split() if word.isalpha())
    return " ".join(list(words)[:6])


def _drawn(
    first: int, count: int, jobs: int, shrinks: bool
) -> Iterator[tuple[DrawnVerdict, float]]:
    """Play drawn sequences in so many processes; print what is found in each."""
    seeds = range(first, first + count)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for verdict, seconds, needed in pool.map(partial(_play_drawn, shrinks=shrinks), seeds):
            for finding in verdict.findings[:3]:
                print(f"{verdict.seed}: {finding}", flush=True)
            for event in needed:
                print(f"{verdict.seed}:     {event}", flush=True)
            yield verdict, seconds


def _figures(
    verdicts: Iterable[Verdict], drawn_verdicts: Sequence[DrawnVerdict]
) -> dict[str, object]:
    verdicts = list(verdicts)
    dollars = sum((verdict.dollars_above_cheapest for verdict in verdicts), Decimal(0))
    below = sum(verdict.ticks_below_floor for verdict in verdicts)
    unsettled = sum(verdict.unsettled for verdict in verdicts)
    return {
        "below_floor": below + sum(verdict.below_floor for verdict in drawn_verdicts),
        "unsettled": unsettled + sum(verdict.unsettled for verdict in drawn_verdicts),
        "untrue_promises": sum(verdict.untrue_promises for verdict in drawn_verdicts),
        "defects": sum(verdict.defects for verdict in drawn_verdicts),
        "dollars_above_cheapest": float(round(dollars, 2)),
        "unclean_drawn": sum(not verdict.is_clean for verdict in drawn_verdicts),
    }


async def _measure(fleets: int, sequences: int, failing: dict[str, list[int]]) -> list[Verdict]:
    return [*await _fleets(fleets), *await _sequences(sequences, failing)]


def measure(  # noqa: PLR0913 - the options of the command
    *,
    fleets: int = 300,
    sequences: int = 100,
    drawn: int = 50,
    neighbours: int = 4,
    first: int = 1,
    jobs: int = 1,
    known: bool = False,
    shrink: bool = False,
) -> dict[str, object]:
    """Play and judge; print the seeds that fail where they are asked for."""
    failing: dict[str, list[int]] = defaultdict(list)
    begun = time.process_time()
    verdicts = asyncio.run(_measure(fleets, sequences, failing))
    spent = time.process_time() - begun
    drawn_verdicts = []
    for verdict, seconds in _drawn(first, drawn, jobs, shrink):
        drawn_verdicts.append(verdict)
        spent += seconds
    if known:
        for reason, seeds in sorted(failing.items()):
            print(f"{reason}: {' '.join(map(str, seeds))}")
    begun = time.process_time()
    raised = {"neighbour_raises": neighbour_raises(neighbours)}
    spent += time.process_time() - begun
    counts = {"fleets": fleets, "sequences": sequences, "drawn": drawn, "neighbours": neighbours}
    figures = _figures(verdicts, drawn_verdicts) | raised | counts
    return {**figures, "cpu_seconds": round(spent, 1)}


if __name__ == "__main__":
    benchmark(
        measure,
        24,
        short={"fleets": 1, "sequences": 1, "drawn": 1, "neighbours": 0},
        known={"help": "print the seeds that fail"},
        neighbours={"help": "fleets of three tenants whose prices are watched"},
        first={"help": "the first seed of the drawn sequences"},
        jobs={"help": "processes that play drawn sequences"},
        shrink={"help": "print the events that a drawn sequence needs to fail"},
    )
