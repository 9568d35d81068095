"""Batches under random kills: what was lost, what came twice, what was paid again.

`Harm` is anything that may be done to a batch while it runs; kills of nodes or of the operator are
more of them.
"""

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.batch_runner.running import Runner, Stage, a_row

# From a row to its answer.
DELAY_SECONDS = 0.02
CONCURRENCY = 32
# From the start of an attempt to the harm that is done to it.
_LONGEST_SECONDS = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How a batch ended that was harmed."""

    rows: int
    attempts: int
    harms: tuple[str, ...]
    lost: int
    twice: int
    wrong: int
    """Rows with another row's answer."""
    sent: int
    """Requests that reached an engine."""
    repaid: int
    """Rows paid more than once, as the last report says."""
    stale_codes: tuple[int, ...]
    """Exit codes of attempts that woke up after another had taken over."""


class Victim:
    """A batch with its present runner."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.attempt = 0
        self.frozen: list[Runner] = []
        self.runner = self.next_attempt()

    def next_attempt(self) -> Runner:
        """What the operator does when an attempt is gone."""
        self.attempt += 1
        self.stage.current(self.attempt)
        options = ("--concurrency", str(CONCURRENCY), "--engine-seconds", "30")
        self.runner = self.stage.start(self.attempt, *options)
        return self.runner


Harm: TypeAlias = Callable[[Victim], None]


def kill_runner(victim: Victim) -> None:
    victim.runner.signal(signal.SIGKILL)
    victim.runner.ended()
    victim.next_attempt()


def kill_engine(victim: Victim) -> None:
    victim.stage.kill_engine()
    victim.stage.start_engine()


def kill_both(victim: Victim) -> None:
    """As when the node is lost, but its page cache is not."""
    victim.stage.kill_engine()
    victim.runner.signal(signal.SIGKILL)
    victim.runner.ended()
    victim.stage.start_engine()
    victim.next_attempt()


def cut_off_runner(victim: Victim) -> None:
    """The node vanishes from sight; its runner comes back later and works on."""
    victim.runner.signal(signal.SIGSTOP)
    victim.frozen.append(victim.runner)
    victim.next_attempt()


def stop_runner(victim: Victim) -> None:
    victim.runner.signal(signal.SIGTERM)
    victim.runner.ended()
    victim.next_attempt()


# Each of them costs at most the rows in flight.
KILLS: tuple[Harm, ...] = (kill_runner, kill_engine, kill_both, stop_runner)
HARMS: tuple[Harm, ...] = (*KILLS, cut_off_runner)


def suffered(
    folder: Path, seed: int, rows: int, harms: Sequence[Harm] = HARMS, most: int = 6
) -> Story:
    """Run a batch to its end while up to `most` harms are done to it, chosen by the seed."""
    stage = Stage(folder)
    try:
        return _suffered(stage, random.Random(seed), rows, harms, most)  # noqa: S311 - no secret
    finally:
        stage.close()


def _suffered(
    stage: Stage, chance: random.Random, rows: int, harms: Sequence[Harm], most: int
) -> Story:
    stage.checked(*map(a_row, range(rows)))
    stage.start_engine("--delay", str(DELAY_SECONDS))
    victim, done = Victim(stage), list[str]()
    while len(done) < most and _moment(victim.runner, chance, rows):
        harm = chance.choice(harms)
        done.append(harm.__name__)
        harm(victim)
        if victim.frozen and chance.random() < 0.5:
            victim.frozen[-1].signal(signal.SIGCONT)
    end = victim.runner.ended()
    assert (end.code, end.report["state"]) == (0, "completed"), end.said
    for runner in victim.frozen:
        runner.signal(signal.SIGCONT)
    stale = tuple(runner.ended().code for runner in victim.frozen)
    return _told(stage, rows, victim.attempt, tuple(done), end.report["resentRows"], stale)


def _moment(runner: Runner, chance: random.Random, rows: int) -> bool:
    """Some time later, or some rows later; does the runner still run?"""
    if chance.random() < 0.5:
        return runner.runs_for(chance.uniform(0, _LONGEST_SECONDS))
    seen = runner.until(lambda seen: seen["state"] == "running", "a runner that runs")
    done = seen.get("done", 0)
    enough = done + (rows - done) * chance.uniform(0, 0.5)
    runner.until(lambda seen: seen["done"] >= enough, f"{enough} rows")
    return runner.runs_for(0)


def _told(
    stage: Stage,
    rows: int,
    attempts: int,
    harms: tuple[str, ...],
    repaid: int,
    stale: tuple[int, ...],
) -> Story:
    found: Counter[str] = Counter()
    wrong = 0
    for path in (stage.claim.output, stage.claim.errors):
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                found[row["custom_id"]] += 1
                said = row["response"]["body"]["choices"][0]["message"]["content"]
                wrong += not said.startswith(f"{row['custom_id']} ")
    return Story(
        rows=rows,
        attempts=attempts,
        harms=harms,
        lost=rows - len(found),
        twice=found.total() - len(found),
        wrong=wrong,
        sent=len(stage.sent()),
        repaid=repaid,
        stale_codes=stale,
    )
