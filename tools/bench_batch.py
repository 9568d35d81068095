"""What the batch runner costs: CPU for a row, memory with a million rows, and chaos.

The engine is a look-alike in another process, so that its time is not counted. The last line is
`BENCH` and the figures as JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tessera.batch import manifest, parts
from tests.batch.chaos import CONCURRENCY, HARMS, KILLS, Harm, Story, suffered
from tests.batch.running import Claim, Ended, Stage, a_row

ROWS = 20_000
MANY_ROWS = 1_000_000
OPEN_EVERY = 100
"""In the large batch, every hundredth row was not answered by the earlier attempt."""
KILL_SEEDS = range(1, 21)
STALE_SEEDS = range(21, 27)
CHAOS_ROWS = 2000
ANSWER_WORDS = 150
PROMPT = "lorem ipsum " * 80


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("cpu", "memory", "chaos"))
    only = parser.parse_args().only
    figures: dict[str, float] = {}
    if only in (None, "cpu"):
        figures |= _cpu()
    if only in (None, "memory"):
        figures |= _memory()
    if only in (None, "chaos"):
        figures |= _chaos()
    for name, value in figures.items():
        print(f"{name:>24} {value}")
    print(f"BENCH {json.dumps(figures)}")


def _cpu() -> dict[str, float]:
    _said(f"{ROWS} rows of 1 KiB with answers of 1 KiB, 64 in flight")
    with _stage() as stage:
        stage.claim.write(a_row(number, prompt=f"{number} {PROMPT}") for number in range(ROWS))
        checked = _good(stage.check())
        stage.start_engine("--words", str(ANSWER_WORDS))
        begun = time.monotonic()
        ran = _good(stage.start(1, "--concurrency", "64").ended())
        wall = time.monotonic() - begun
    return {
        "check_row_cpu_ms": _milliseconds(checked, ROWS),
        "row_cpu_ms": _milliseconds(ran, ROWS),
        "rows_per_second": round(ROWS / wall),
        "rss_mib": round(max(checked.rss_mib, ran.rss_mib), 1),
    }


def _memory() -> dict[str, float]:
    """Peak memory of check and of the second attempt, which finds 990,000 answers of the first."""
    answered = MANY_ROWS - MANY_ROWS // OPEN_EVERY
    _said(f"{MANY_ROWS} rows of 0.2 KiB, {answered} of them answered by an earlier attempt")
    with _stage() as stage:
        stage.claim.write(map(a_row, range(MANY_ROWS)))
        checked = _good(stage.check())
        _said(f"checked: {checked.rss_mib:.0f} MiB, {checked.cpu_seconds:.1f} s CPU")
        _first_attempt(stage.claim)
        stage.current(2)
        stage.start_engine("--words", "20")
        ran = _good(stage.start(2, "--concurrency", "256").ended())
        _said(f"ran: {ran.rss_mib:.0f} MiB, {ran.cpu_seconds:.1f} s CPU")
        if ran.report["completed"] != MANY_ROWS:
            sys.exit(f"rows are missing: {ran.report}")
    return {
        "check_rss_mib_1m_rows": round(checked.rss_mib, 1),
        "run_rss_mib_1m_rows": round(ran.rss_mib, 1),
        "rss_mib_1m_rows": round(max(checked.rss_mib, ran.rss_mib), 1),
        "check_cpu_s_1m_rows": round(checked.cpu_seconds, 1),
        "resume_cpu_s_1m_rows": round(ran.cpu_seconds, 1),
    }


def _first_attempt(claim: Claim) -> None:
    """Parts as an attempt leaves them that lost every hundredth row."""
    found = manifest.load(claim.work)
    parts.folder_of(claim.work).mkdir()
    body = json.dumps({"choices": [{"message": {"content": "word " * 20}}]})
    for number, shard in enumerate(found.shards):
        with parts.path_of(claim.work, number, 1).open("wb") as part:
            for row in range(shard.first_row, shard.first_row + shard.rows):
                part.write(parts.sent(row, 10, 20))
                if row % OPEN_EVERY:
                    line = _line(parts.line_id(found.stamp, row), f"row-{row}", body)
                    part.write(parts.answered(row, line, good=True, prompt=7, output=11))


def _line(line_id: str, custom_id: str, body: str) -> bytes:
    response = f'{{"status_code":200,"request_id":"r","body":{body}}}'
    told = f'{{"id":"{line_id}","custom_id":"{custom_id}","response":{response},"error":null}}'
    return told.encode()


def _chaos() -> dict[str, float]:
    told = f"batches of {CHAOS_ROWS} rows, {CONCURRENCY} in flight, each harmed up to 6 times"
    _said(f"{len(KILL_SEEDS)} {told} by kill -9 of runner, engine or both, or SIGTERM")
    killed = [_told(seed, KILLS) for seed in KILL_SEEDS]
    _said(f"{len(STALE_SEEDS)} {told}, also by freezing a runner that later works on")
    stale = [_told(seed, HARMS) for seed in STALE_SEEDS]
    harms, repaid = (sum(len(story.harms) for story in killed), _repaid(killed))
    return {
        "chaos_seeds": len(killed),
        "chaos_harms": harms,
        "chaos_attempts": sum(story.attempts for story in killed),
        "rows_lost": sum(story.lost for story in killed + stale),
        "rows_twice": sum(story.twice for story in killed + stale),
        "rows_wrong": sum(story.wrong for story in killed + stale),
        "repaid_share": round(repaid / (CHAOS_ROWS * len(killed)), 4),
        "repaid_rows_per_harm": round(repaid / max(1, harms), 1),
        "sent_again_share": round(
            sum(story.sent for story in killed) / (CHAOS_ROWS * len(killed)) - 1, 4
        ),
        "stale_seeds": len(stale),
        "stale_repaid_share": round(_repaid(stale) / (CHAOS_ROWS * len(stale)), 4),
    }


def _repaid(stories: Sequence[Story]) -> int:
    return sum(story.repaid for story in stories)


def _told(seed: int, harms: Sequence[Harm]) -> Story:
    with tempfile.TemporaryDirectory() as folder:
        story = suffered(Path(folder) / "stage", seed, CHAOS_ROWS, harms)
    _said(
        f"seed {seed:2}: {story.attempts} attempts, lost {story.lost}, twice {story.twice}, repaid "
        f"{story.repaid} ({', '.join(story.harms)})"
    )
    return story


@contextmanager
def _stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder) / "stage")
        try:
            yield stage
        finally:
            stage.close()


def _good(ended: Ended) -> Ended:
    if ended.code:
        sys.exit(f"exit code {ended.code}: {ended.report}\n{ended.said}")
    return ended


def _milliseconds(ended: Ended, rows: int) -> float:
    return round(ended.cpu_seconds / rows * 1e3, 3)


def _said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
