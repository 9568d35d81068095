"""Healthy replicas that generated fleets lose, whatever meets in them: `make bench-floors`.

Each fleet is judged at its rest, and then after one event with the next plan and the controllers'
next steps; each sequence is played to its rest. `--known` prints the seeds of the sequences that
fail, by the reason that is probable. The last line is `BENCH {json}`.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

from figures import benchmark
from tests.floors.known import probable_reason
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


def _figures(verdicts: Iterable[Verdict]) -> dict[str, object]:
    verdicts = list(verdicts)
    dollars = sum((verdict.dollars_above_cheapest for verdict in verdicts), Decimal(0))
    return {
        "ticks_below_floor": sum(verdict.ticks_below_floor for verdict in verdicts),
        "dollars_above_cheapest": float(round(dollars, 2)),
        "unsettled": sum(verdict.unsettled for verdict in verdicts),
    }


async def _measure(fleets: int, sequences: int, failing: dict[str, list[int]]) -> list[Verdict]:
    return [*await _fleets(fleets), *await _sequences(sequences, failing)]


def measure(fleets: int = 300, sequences: int = 100, known: bool = False) -> dict[str, object]:
    """Play and judge; print the seeds that fail where they are asked for."""
    failing: dict[str, list[int]] = defaultdict(list)
    begun = time.process_time()
    verdicts = asyncio.run(_measure(fleets, sequences, failing))
    spent = time.process_time() - begun
    if known:
        for reason, seeds in sorted(failing.items()):
            print(f"{reason}: {' '.join(map(str, seeds))}")
    counts = {"fleets": fleets, "sequences": sequences}
    return {**_figures(verdicts), **counts, "cpu_seconds": round(spent, 1)}


if __name__ == "__main__":
    benchmark(measure, 24, known={"help": "print the seeds that fail"})
