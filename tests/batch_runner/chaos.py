"""Batches under random faults: lost, duplicate and resent rows.

`BatchFault` is anything that can be done to a running batch; kills of nodes or of the operator
are further kinds.
"""

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.batch_runner.harness import Runner, RunnerEndedError, RunnerHarness, a_row

# From a row to its response.
DELAY_SECONDS = 0.02
CONCURRENCY = 32
# From the start of an attempt to the fault.
_LONGEST_SECONDS = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutcome:
    """The result of a batch with injected faults."""

    rows: int
    attempts: int
    faults: tuple[str, ...]
    lost: int
    twice: int
    wrong: int
    """Rows with another row's answer."""
    sent: int
    """Requests that reached an engine."""
    resent_rows: int
    """Rows that were sent more than once, as the last report says."""
    stale_codes: tuple[int, ...]
    """Exit codes of attempts that resumed after another had taken over."""


class BatchUnderFaults:
    """A batch with its current runner."""

    def __init__(self, harness: RunnerHarness) -> None:
        self.harness = harness
        self.attempt = 0
        self.suspended: list[Runner] = []
        self.runner = self.next_attempt()

    def next_attempt(self) -> Runner:
        """Start the next attempt, as the operator does when one has ended."""
        self.attempt += 1
        self.harness.set_current_attempt(self.attempt)
        options = ("--concurrency", str(CONCURRENCY), "--engine-seconds", "30")
        self.runner = self.harness.start(self.attempt, *options)
        return self.runner


BatchFault: TypeAlias = Callable[[BatchUnderFaults], None]


def kill_runner(batch: BatchUnderFaults) -> None:
    batch.runner.signal(signal.SIGKILL)
    batch.runner.wait_for_exit()
    batch.next_attempt()


def kill_engine(batch: BatchUnderFaults) -> None:
    batch.harness.kill_engine()
    batch.harness.start_engine()


def kill_both(batch: BatchUnderFaults) -> None:
    """Kill engine and runner, as when the node is lost but its page cache is not."""
    batch.harness.kill_engine()
    batch.runner.signal(signal.SIGKILL)
    batch.runner.wait_for_exit()
    batch.harness.start_engine()
    batch.next_attempt()


def cut_off_runner(batch: BatchUnderFaults) -> None:
    """Suspend the runner, as when its node is unreachable; it resumes later."""
    batch.runner.signal(signal.SIGSTOP)
    batch.suspended.append(batch.runner)
    batch.next_attempt()


def stop_runner(batch: BatchUnderFaults) -> None:
    batch.runner.signal(signal.SIGTERM)
    batch.runner.wait_for_exit()
    batch.next_attempt()


# Each of these costs at most the rows in flight.
KILLS: tuple[BatchFault, ...] = (kill_runner, kill_engine, kill_both, stop_runner)
FAULTS: tuple[BatchFault, ...] = (*KILLS, cut_off_runner)


def run_with_batch_faults(
    folder: Path, seed: int, rows: int, faults: Sequence[BatchFault] = FAULTS, max_faults: int = 6
) -> BatchOutcome:
    """Run a batch to its end with up to `max_faults` faults, chosen by the seed."""
    harness = RunnerHarness(folder)
    try:
        return _inject_faults(harness, random.Random(seed), rows, faults, max_faults)  # noqa: S311 - no secret
    finally:
        harness.close()


def _inject_faults(
    harness: RunnerHarness,
    rng: random.Random,
    rows: int,
    faults: Sequence[BatchFault],
    max_faults: int,
) -> BatchOutcome:
    harness.write_checked_input(*map(a_row, range(rows)))
    harness.start_engine("--delay", str(DELAY_SECONDS))
    batch, done = BatchUnderFaults(harness), list[str]()
    while len(done) < max_faults and _wait_for_moment(batch.runner, rng, rows):
        fault = rng.choice(faults)
        done.append(fault.__name__)
        fault(batch)
        if batch.suspended and rng.random() < 0.5:
            batch.suspended[-1].signal(signal.SIGCONT)
    end = batch.runner.wait_for_exit()
    assert (end.code, end.report["state"]) == (0, "completed"), end.log_text
    for runner in batch.suspended:
        runner.signal(signal.SIGCONT)
    stale = tuple(runner.wait_for_exit().code for runner in batch.suspended)
    return _outcome(harness, rows, batch.attempt, tuple(done), end.report["resentRows"], stale)


def _wait_for_moment(runner: Runner, rng: random.Random, rows: int) -> bool:
    """Wait for some time or some rows; return whether the runner still runs."""
    if rng.random() < 0.5:
        return runner.runs_for(rng.uniform(0, _LONGEST_SECONDS))
    share = rng.uniform(0, 0.5)
    try:
        done = runner.wait_for_progress(state="running")["done"]
        runner.wait_for_progress(done + (rows - done) * share)
    except RunnerEndedError:
        return False
    return runner.runs_for(0)


def _outcome(
    harness: RunnerHarness,
    rows: int,
    attempts: int,
    faults: tuple[str, ...],
    resent_rows: int,
    stale: tuple[int, ...],
) -> BatchOutcome:
    answers_by_row: Counter[str] = Counter()
    wrong = 0
    for path in (harness.claim.output, harness.claim.errors):
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                answers_by_row[row["custom_id"]] += 1
                content = row["response"]["body"]["choices"][0]["message"]["content"]
                wrong += not content.startswith(f"{row['custom_id']} ")
    return BatchOutcome(
        rows=rows,
        attempts=attempts,
        faults=faults,
        lost=rows - len(answers_by_row),
        twice=answers_by_row.total() - len(answers_by_row),
        wrong=wrong,
        sent=len(harness.sent_row_ids()),
        resent_rows=resent_rows,
        stale_codes=stale,
    )
