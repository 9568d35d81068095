"""Plays two faults during a batch, and judges by the files and by what still runs.

    python -m tests.fault_sequences.batch_player SEED [-v]

plays one sequence and prints what is wrong, one line each.
"""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.fault_sequences.batch_faults import BATCH_FAULTS
from tests.fault_sequences.batch_fleet import NIGHT, BatchFleet
from tests.fault_sequences.language import FaultSequence, Occurrence, occurrences, sequence_of

_ROWS = 120
# The first fault begins within this time, in seconds; undisturbed the batch ends after 65.
_SPREAD_SECONDS = 50.0
# A deleted batch stops within 30 s, and its pods have 12 s to end.
_STOP_SECONDS = 45.0
# Clean or named within 5 minutes, counted from the last row and the last change of the status.
_SETTLE_SECONDS = 300.0
_MAX_SECONDS = 2 * 3600.0
_TERMINAL = ("completed", "failed", "expired")
# Reasons that say what is under way, and not what holds it.
_UNDER_WAY = ("Starting", "ValidationJobRunning", "OnSpot", "NotYetAhead", "SpotDisabled", "")


@dataclass(slots=True)
class BatchPlay:
    """One sequence."""

    sequence: FaultSequence[BatchFleet]
    folder: Path
    log: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    _output: bytes | None = None

    def run(self) -> list[str]:
        """Play it and return everything that is wrong; nothing if all is well."""
        rng = random.Random(self.sequence.seed)  # noqa: S311 - no secret
        fleet = BatchFleet(self.folder, _ROWS)
        while not fleet.working_pods():
            fleet.step()
        planned = occurrences(self.sequence, rng, fleet.now, _SPREAD_SECONDS, 1.0)
        while not all(occurrence.over for occurrence in planned):
            self._step(fleet, planned, rng)
            if self._has_ended(fleet) and all(_is_past(each, fleet) for each in planned):
                break
        self._settle(fleet)
        self._judge(fleet)
        return self.findings

    def _step(
        self, fleet: BatchFleet, planned: list[Occurrence[BatchFleet]], rng: random.Random
    ) -> None:
        for occurrence in planned:
            if occurrence.target is None and self._has_ended(fleet):
                occurrence.over = True  # it came too late
            elif occurrence.step(fleet, fleet.now, rng):
                self._note(fleet, occurrence.describe())
        before = self._shown(fleet)
        fleet.step()
        if self._shown(fleet) != before:
            self._note(fleet, self._shown(fleet))
        self._observe(fleet)

    def _settle(self, fleet: BatchFleet) -> None:
        """Go on until the batch has ended or nothing has moved for five minutes."""
        moved, last = fleet.now, ""
        while fleet.now < _MAX_SECONDS:
            self._step(fleet, [], random.Random(0))  # noqa: S311 - no secret
            progress = f"{self._shown(fleet)} {fleet.engine.sent}"
            moved, last = (fleet.now, progress) if progress != last else (moved, last)
            ended = self._has_ended(fleet) and not fleet.live_processes()
            if fleet.now - moved >= (_STOP_SECONDS if ended else _SETTLE_SECONDS):
                return

    def _has_ended(self, fleet: BatchFleet) -> bool:
        return fleet.state in _TERMINAL or NIGHT not in fleet.cluster.objects

    def _shown(self, fleet: BatchFleet) -> str:
        status = fleet.status
        attempt = status.get("attempt", {})
        return (
            f"{fleet.state} {status.get('reason')} {status.get('done')} "
            f"attempt {attempt.get('number')}: {status.get('message', '')}"
        )

    def _note(self, fleet: BatchFleet, text: str) -> None:
        self.log.append(f"{fleet.now:6.0f} s {text}")

    # What is right

    def _find(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)

    def _observe(self, fleet: BatchFleet) -> None:
        """What holds at every moment: results never change, and a deleted batch stops."""
        output = fleet.claim / "out.jsonl"
        content = output.read_bytes() if output.exists() else None
        if self._output is not None and content != self._output:
            self._find("the published output changed")
        self._output = content
        if fleet.deleted_at is not None and fleet.now - fleet.deleted_at > _STOP_SECONDS:
            running = sorted(
                process.name for process in fleet.live_processes() if not process.frozen
            )
            if running:
                self._find(f"{', '.join(running)} still run {_STOP_SECONDS:.0f} s after deletion")

    def _judge(self, fleet: BatchFleet) -> None:
        permitted = {state for fault in self.sequence.faults for state in fault.permits}
        state = fleet.state if NIGHT in fleet.cluster.objects else ""
        if fleet.deleted_at is None and state != "completed":
            self._judge_unfinished(fleet, state, permitted)
        if (fleet.claim / "out.jsonl").exists():
            self._judge_files(fleet)
        elif state == "completed":
            self._find("completed, and there is no output")
        if self._has_ended(fleet) and (running := fleet.live_processes()):
            self._find(f"{len(running)} processes still run: {[each.name for each in running]}")

    def _judge_unfinished(self, fleet: BatchFleet, state: str, permitted: set[str]) -> None:
        shown = self._shown(fleet)
        reason = str(fleet.status.get("reason", ""))
        if state in _TERMINAL and state not in permitted:
            self._find(f"ended by faults that passed: {shown}")
        elif state not in _TERMINAL and reason in _UNDER_WAY:
            self._find(f"nothing moves, and nothing is named: {shown}")
        elif state not in _TERMINAL:
            self._find(f"it waits although every fault is over: {shown}")

    def _judge_files(self, fleet: BatchFleet) -> None:
        rows = published_rows(fleet.claim)
        ids = Counter(custom_id for custom_id, _ in rows)
        versions = [dict(version) for version in fleet.versions]
        if not any(ids == Counter(version.keys()) for version in versions):
            checked = versions[0]
            lost = sorted(checked.keys() - ids.keys())
            twice = sorted(custom_id for custom_id, count in ids.items() if count > 1)
            extra = sorted(ids.keys() - checked.keys())
            self._find(
                f"published {len(rows)} rows of {len(checked)}: lost {lost[:3]} ({len(lost)}), "
                f"twice {twice[:3]} ({len(twice)}), extra {extra[:3]} ({len(extra)})"
            )
            return
        answers = {custom_id: answer for custom_id, answer in rows if answer is not None}
        if len(answers) < len(rows):
            self._find(f"{len(rows) - len(answers)} of {len(rows)} rows are in the errors file")
        if not any(answers.items() <= version.items() for version in versions):
            wrong = sum(answers[name] != versions[0].get(name) for name in answers)
            self._find(f"{wrong} rows are answered for another version of the input")


def _is_past(occurrence: Occurrence[BatchFleet], fleet: BatchFleet) -> bool:
    return occurrence.over or (occurrence.target is None and fleet.now >= occurrence.begins)


def published_rows(claim: Path) -> list[tuple[str, str | None]]:
    """Return custom_id and answer of every published row; None instead of an error's answer."""
    rows: list[tuple[str, str | None]] = []
    for name in ("out.jsonl", "out.errors.jsonl"):
        path = claim / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            choices = ((row.get("response") or {}).get("body") or {}).get("choices")
            rows.append((row["custom_id"], choices[0]["message"]["content"] if choices else None))
    return rows


def batch_sequence(seed: int) -> FaultSequence[BatchFleet]:
    """Return the sequence of a seed."""
    return sequence_of(BATCH_FAULTS, seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    sequence = batch_sequence(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        play = BatchPlay(sequence, Path(folder))
        findings = play.run()
        play_log = play.log if arguments.verbose or findings else []
        sys.stdout.write(
            "".join(f"{line}\n" for line in [*findings, *(f"  {x}" for x in play_log)])
        )
        sys.stdout.flush()
        for path in sorted(Path(folder).rglob("*"), reverse=True):
            path.unlink() if not path.is_dir() else path.rmdir()
    # Killed processes are never finalized.
    os._exit(1 if findings else 0)


if __name__ == "__main__":
    main()
