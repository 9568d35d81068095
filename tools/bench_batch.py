"""What the batch runner costs: CPU for a row, memory with a million rows, and chaos.

The engine is the simulator in another process, so that its time is not counted. Chaos comes twice:
around a runner alone, and in a world with the installed chart, where runner, engine, node and
operator are killed. The last line is `BENCH` and the figures as JSON.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import mean
from typing import TypeVar

import world
from demo.cluster import EXAMPLES, InstalledCluster, install
from figures import benchmark
from scenarios.batches import IN_FLIGHT, BatchNamespace, create_shared_claim
from scenarios.chaos import (
    CLOUD_TAINTS,
    FAULT_KINDS,
    NodeLossResult,
    count_created_jobs,
    lose_node_with_notice,
    lose_silent_node,
    record_runners,
    run_with_faults,
)
from scenarios.chaos import (
    ChaosResult as Course,
)
from scenarios.lifecycle import write_fleet
from tessera.batch_runner.answers import parts
from tessera.batch_runner.input import manifest
from tests.batch_runner.chaos import (
    CONCURRENCY,
    FAULTS,
    KILLS,
    BatchFault,
    BatchOutcome,
    run_with_batch_faults,
)
from tests.batch_runner.harness import Claim, RunnerExit, RunnerHarness, a_row
from world.api import connect

# In the large batch, every hundredth row was not answered by the earlier attempt.
OPEN_EVERY = 100
FIRST_STALE_SEED = 21
# So that 2,000 rows take 20 s when nothing happens.
WORLD_TOKENS = 10
AT_ONCE = 3
LOSS_ROWS = 1000
# So that a batch takes 70 s, and an old runner goes on for 60 s.
LOSS_TOKENS = 75
LOSSES_AT_ONCE = 5
# Seconds from the notice to the end of a node; 15 as on GKE.
GRACES = (30, 15)
FENCED = 4
ANSWER_WORDS = 150
NAMESPACE = "team-batch"
PROMPT = "lorem ipsum " * 80


T = TypeVar("T")
BY_DEFAULT = ("cpu", "memory", "chaos", "world")


def measure(  # noqa: PLR0913 - the options of the command
    *,
    only: str = "",
    rows: int = 20_000,
    many_rows: int = 1_000_000,
    chaos_rows: int = 2000,
    kills: int = 20,
    stale: int = 6,
    seeds: int = 20,
    without_world: bool = False,
) -> dict[str, float]:
    """Measure some parts, or the only one that is chosen."""
    parts_of: dict[str, Callable[[], dict[str, float]]] = {
        "cpu": lambda: _cpu(rows),
        "memory": lambda: _memory(many_rows),
        "chaos": lambda: _chaos(chaos_rows, kills, stale),
        "world": lambda: asyncio.run(_world(seeds, chaos_rows)),
        "losses": lambda: asyncio.run(_losses(seeds)),
    }
    figures: dict[str, float] = {}
    for part in [only] if only else BY_DEFAULT[: -1 if without_world else None]:
        for name, value in parts_of[part]().items():  # two parts count lost rows
            figures[name] = figures.get(name, 0) + value
    return figures


def _cpu(rows: int) -> dict[str, float]:
    _log(f"{rows} rows of 1 KiB with answers of 1 KiB, 64 in flight")
    with _stage() as stage:
        stage.claim.write(a_row(number, prompt=f"{number} {PROMPT}") for number in range(rows))
        checked = _require_success(stage.check())
        stage.start_engine("--words", str(ANSWER_WORDS))
        begun = time.monotonic()
        ran = _require_success(stage.start(1, "--concurrency", "64").wait_for_exit())
        wall = time.monotonic() - begun
    return {
        "check_row_cpu_ms": _milliseconds(checked, rows),
        "row_cpu_ms": _milliseconds(ran, rows),
        "rows_per_second": round(rows / wall),
        "rss_mib": round(max(checked.rss_mib, ran.rss_mib), 1),
    }


def _memory(rows: int) -> dict[str, float]:
    """Peak memory of check and of the second attempt, which finds 99 % of the answers."""
    answered = rows - rows // OPEN_EVERY
    _log(f"{rows} rows of 0.2 KiB, {answered} of them answered by an earlier attempt")
    with _stage() as stage:
        stage.claim.write(map(a_row, range(rows)))
        checked = _require_success(stage.check())
        _log(f"checked: {checked.rss_mib:.0f} MiB, {checked.cpu_seconds:.1f} s CPU")
        _first_attempt(stage.claim)
        stage.set_current_attempt(2)
        stage.start_engine("--words", "20")
        ran = _require_success(stage.start(2, "--concurrency", "256").wait_for_exit())
        _log(f"ran: {ran.rss_mib:.0f} MiB, {ran.cpu_seconds:.1f} s CPU")
        if ran.report["completed"] != rows:
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
    input_manifest = manifest.load(claim.work)
    parts.parts_folder(claim.work).mkdir()
    body = json.dumps({"choices": [{"message": {"content": "word " * 20}}]})
    for number, shard in enumerate(input_manifest.shards):
        with parts.part_path(claim.work, number, 1).open("wb") as part:
            for row in range(shard.first_row, shard.first_row + shard.rows):
                part.write(parts.encode_sent(row, 10, 20))
                if row % OPEN_EVERY:
                    line = _line(parts.line_id(input_manifest.input_id, row), f"row-{row}", body)
                    part.write(parts.encode_answered(row, line, good=True, prompt=7, output=11))


def _line(line_id: str, custom_id: str, body: str) -> bytes:
    response = f'{{"status_code":200,"request_id":"r","body":{body}}}'
    line = f'{{"id":"{line_id}","custom_id":"{custom_id}","response":{response},"error":null}}'
    return line.encode()


def _chaos(rows: int, kills: int, stale_seeds: int) -> dict[str, float]:
    description = f"batches of {rows} rows, {CONCURRENCY} in flight, each harmed up to 6 times"
    _log(f"{kills} {description} by kill -9 of runner, engine or both, or SIGTERM")
    killed = [_run_chaos(seed, rows, KILLS) for seed in range(1, 1 + kills)]
    _log(f"{stale_seeds} {description}, also by freezing a runner that later works on")
    stale_range = range(FIRST_STALE_SEED, FIRST_STALE_SEED + stale_seeds)
    stale = [_run_chaos(seed, rows, FAULTS) for seed in stale_range]
    harms, repaid = (sum(len(story.faults) for story in killed), _repaid(killed))
    return {
        "chaos_seeds": len(killed),
        "chaos_harms": harms,
        "chaos_attempts": sum(story.attempts for story in killed),
        "rows_lost": sum(story.lost for story in killed + stale),
        "rows_twice": sum(story.twice for story in killed + stale),
        "rows_wrong": sum(story.wrong for story in killed + stale),
        "runner_repaid_share": round(repaid / (rows * len(killed)), 4),
        "runner_repaid_rows_per_harm": round(repaid / max(1, harms), 1),
        "sent_again_share": round(
            sum(story.sent for story in killed) / (rows * len(killed)) - 1, 4
        ),
        "stale_seeds": len(stale),
        "stale_repaid_share": round(_repaid(stale) / (rows * len(stale)), 4),
    }


def _repaid(stories: Sequence[BatchOutcome]) -> int:
    return sum(story.resent_rows for story in stories)


def _run_chaos(seed: int, rows: int, harms: Sequence[BatchFault]) -> BatchOutcome:
    with tempfile.TemporaryDirectory() as folder:
        story = run_with_batch_faults(Path(folder) / "stage", seed, rows, harms)
    _log(
        f"seed {seed:2}: {story.attempts} attempts, lost {story.lost}, twice {story.twice}, repaid "
        f"{story.resent_rows} ({', '.join(story.faults)})"
    )
    return story


async def _world(seeds: int, rows: int) -> dict[str, float]:
    """Batches in a world, harmed at random by -9 of runner, engine, node and operator."""
    _log(
        f"{seeds} batches of {rows} rows in a world, {IN_FLIGHT} in flight, {AT_ONCE} at a "
        "time, each harmed 2 to 4 times"
    )
    begun, operator = time.monotonic(), asyncio.Lock()

    async def suffered(seed: int) -> Course:
        batch = await batch_world.submit(f"seed-{seed}", rows=rows, tokens=WORLD_TOKENS)
        story = await run_with_faults(batch, seed, record, operator)
        _log(
            f"seed {seed:2}: {story.seconds:3.0f} s, {story.attempts} attempts, "
            f"lost {story.rows.lost}, twice {story.rows.duplicates}, "
            f"wrong {len(story.rows.wrong)}, repaid {dict(story.resent_rows)}, "
            f"exit codes {dict(story.codes)} "
            f"({', '.join(hit.kind for hit in story.faults)})"
        )
        return story

    async with (
        _batch_world(spot=4 * AT_ONCE) as batch_world,
        record_runners(batch_world.cluster, batch_world.name) as record,
    ):
        stories = await _some_at_a_time(suffered, range(1, seeds + 1), AT_ONCE)
        repeated = sum(count - 1 for count in count_created_jobs(batch_world).values())
    _print_harms(stories)
    repaid = sum(story.resent_rows.total() for story in stories)
    hits = sum(len(story.faults) for story in stories)
    return {
        "world_seeds": len(stories),
        "world_seconds": round(time.monotonic() - begun),
        "world_harms": hits,
        "world_attempts": sum(story.attempts for story in stories),
        "world_numbers_repeated": repeated,
        "world_runners_fenced": sum(story.codes[FENCED] for story in stories),
        "rows_lost": sum(story.rows.lost for story in stories),
        "rows_twice": sum(story.rows.duplicates for story in stories),
        "rows_wrong": sum(len(story.rows.wrong) for story in stories),
        "repaid_share": round(repaid / (rows * len(stories)), 4),
        "repaid_rows_per_harm": round(repaid / max(1, hits), 1),
    }


def _print_harms(stories: Sequence[Course]) -> None:
    """What each kind of harm cost."""
    hits = [hit for story in stories for hit in story.faults]
    repaid = sum((story.resent_rows for story in stories), Counter[str]())
    print(f"{'harm':>10} {'times':>6} {'rows paid again':>16} {'each':>6} {'s until rows':>13}")
    for kind in (*FAULT_KINDS, "other"):
        spans = [hit.seconds for hit in hits if hit.kind == kind]
        if spans or repaid[kind]:
            each = repaid[kind] / max(1, len(spans))
            span = mean(spans) if spans else 0
            print(f"{kind:>10} {len(spans):>6} {repaid[kind]:>16} {each:>6.1f} {span:>13.1f}")


async def _losses(seeds: int) -> dict[str, float]:
    """Both ways to lose a node, each with as many seeds."""
    description = f"batches of {LOSS_ROWS} rows, {IN_FLIGHT} in flight, {LOSSES_AT_ONCE} at a time"
    _log(f"2 times {seeds} {description}, each of which loses its node")

    async def noticed(seed: int) -> NodeLossResult:
        batch = await batch_world.submit(f"notice-{seed}", rows=LOSS_ROWS, tokens=LOSS_TOKENS // 3)
        await batch.wait_for_rows(_rows_before_loss(seed, LOSS_ROWS // 2))
        taint = CLOUD_TAINTS[seed % len(CLOUD_TAINTS)] if seed % 3 else None
        grace = GRACES[seed % len(GRACES)]
        return _log_survival(
            f"notice of {grace} s by {taint or 'a drain'}",
            seed,
            await lose_node_with_notice(
                batch, record, taint=taint, grace_seconds=grace, dies_after=grace
            ),
        )

    async def silent(seed: int) -> NodeLossResult:
        batch = await batch_world.submit(f"silence-{seed}", rows=LOSS_ROWS, tokens=LOSS_TOKENS)
        await batch.wait_for_rows(_rows_before_loss(seed, LOSS_ROWS // 15))
        deaf = seed % 2 == 0
        survival = await lose_silent_node(batch, record, delete_pod=deaf)
        return _log_survival(f"silence{', void token' if deaf else ''}", seed, survival)

    async with (
        _batch_world(2 * LOSSES_AT_ONCE) as batch_world,
        record_runners(batch_world.cluster, batch_world.name) as record,
    ):
        notices = await _some_at_a_time(noticed, range(1, seeds + 1), LOSSES_AT_ONCE)
        silences = await _some_at_a_time(silent, range(1, seeds + 1), LOSSES_AT_ONCE)
    figures = _loss_figures("notice", notices) | _loss_figures("silence", silences)
    both = (*notices, *silences)
    return figures | {
        "silence_least_seconds_of_writing": round(
            min(survival.wrote_seconds for survival in silences), 1
        ),
        "rows_lost": sum(survival.rows.lost for survival in both),
        "rows_twice": sum(survival.rows.duplicates for survival in both),
        "rows_wrong": sum(len(survival.rows.wrong) for survival in both),
        "published_by_a_stale_runner": sum(
            survival.publisher != survival.final_attempt for survival in both
        ),
    }


def _loss_figures(kind: str, survivals: Sequence[NodeLossResult]) -> dict[str, float]:
    return {
        f"{kind}_seeds": len(survivals),
        f"{kind}_runners_fenced": sum(survival.exit_code == FENCED for survival in survivals),
        f"{kind}_seconds_to_next_number": round(
            mean(survival.noticed_seconds for survival in survivals), 1
        ),
        f"{kind}_repaid_share": round(
            sum(survival.resent_rows for survival in survivals) / LOSS_ROWS / len(survivals), 4
        ),
    }


def _log_survival(kind: str, seed: int, survival: NodeLossResult) -> NodeLossResult:
    _log(
        f"{kind}, seed {seed}: lost {survival.rows.lost}, twice {survival.rows.duplicates}, "
        f"wrong {len(survival.rows.wrong)}, attempt {survival.publisher} published and "
        f"{survival.final_attempt} is in the status; after {survival.noticed_seconds:.1f} s the "
        f"next had its number, the old runner wrote for {survival.wrote_seconds:.1f} s and "
        f"ended with {survival.exit_code}; repaid {survival.resent_rows}"
    )
    return survival


def _rows_before_loss(seed: int, most: int) -> int:
    """After how many rows the loss comes."""
    return 1 + random.Random(seed).randrange(most)  # noqa: S311 - a seeded course, no secret


async def _some_at_a_time(
    do: Callable[[int], Awaitable[T]], seeds: Sequence[int], at_once: int
) -> list[T]:
    limit = asyncio.Semaphore(at_once)

    async def done(seed: int) -> T:
        async with limit:
            return await do(seed)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(done(seed)) for seed in seeds]
    return [task.result() for task in tasks]


@asynccontextmanager
async def _batch_world(spot: int) -> AsyncIterator[BatchNamespace]:
    """A world with the installed chart, and a namespace for batches in it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        world.start(fleet=write_fleet(Path(folder), spot), progress=_log) as running_world,
    ):
        async with connect(running_world.kubeconfig) as api:
            cluster = InstalledCluster(running_world, api, _log)
            await install(cluster)
            await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
            await api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            yield await create_shared_claim(cluster, NAMESPACE)


@contextmanager
def _stage() -> Iterator[RunnerHarness]:
    with tempfile.TemporaryDirectory() as folder:
        stage = RunnerHarness(Path(folder) / "stage")
        try:
            yield stage
        finally:
            stage.close()


def _require_success(ended: RunnerExit) -> RunnerExit:
    if ended.code:
        sys.exit(f"exit code {ended.code}: {ended.report}\n{ended.log_text}")
    return ended


def _milliseconds(ended: RunnerExit, rows: int) -> float:
    return round(ended.cpu_seconds / rows * 1e3, 3)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    known_parts = (*BY_DEFAULT, "losses")
    benchmark(
        measure,
        24,
        short={
            **{"rows": 200, "many_rows": 2000, "chaos_rows": 200},
            **{"kills": 1, "stale": 1, "seeds": 1},
        },
        only={"choices": known_parts},
        many_rows={"help": "for memory"},
        chaos_rows={"help": "of each batch that is harmed"},
        kills={"help": "seeds of a runner alone"},
        stale={"help": "seeds in which a runner is frozen too"},
        seeds={"help": "of world and losses"},
        without_world={"help": "measure the runner alone"},
    )
