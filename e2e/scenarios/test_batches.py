"""Batches on spot: whatever is lost, every row comes out once."""

import asyncio
import itertools
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from demo.stage import Json, Stage
from scenarios.batches import IN_FLIGHT, Batch, Rows, Shelf, a_claim, fleet, number_in, shelf
from scenarios.chaos import (
    CLOUD_TAINTS,
    Survival,
    at_work,
    exits,
    jobs_created,
    survive_notice,
    survive_silence,
    until_gone,
)
from scenarios.kills import kill_operator
from tessera.domain.batch.names import BATCH_ACCOUNT, RUNNER
from tessera.domain.names import ENGINE
from tessera.resources.api_resources import CLAIMS, JOBS, TENANT_BUDGETS
from world import World, start
from world.api import ApiError
from world.testing import eventually

SEEDS = (1, 2, 3)
# Seconds from the notice to the end of the node: GKE leaves 15.
GRACES = {1: 30, 2: 15, 3: 15}
# In this seed the node is cordoned, not tainted, and its pod evicted.
DRAINED = 3
# In this seed the old runner cannot ask either who the current attempt is.
DEAF = 3
ROWS = 300
# So that a batch takes 16 s, longer than a silent node is trusted.
TOKENS = 60
FEW_ROWS = 150
FEW_TOKENS = 20
ALL_ONCE = Rows(lost=0, twice=0, wrong=())
# Exit codes of a runner that was told to end, or died with its node.
STOPPED = (0, 137)
# Exit code of a runner that found a newer attempt.
FENCED = 4
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One with a spot node for each batch of a test, and for each of their next attempts."""
    with start(fleet=fleet(tmp_path_factory.mktemp("fleet"), spot=4 * len(SEEDS))) as found:
        yield found


@pytest.fixture
async def here(stage: Stage) -> Shelf:
    """A namespace of its own. It is not cleared, since the world goes with this module."""
    name = f"batches-{next(_numbers)}"
    await stage.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return await shelf(stage, name)


def chance_of(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a seeded course, no secret


async def test_rows_survive_the_loss_of_nodes_with_a_notice_and_without(here: Shelf) -> None:
    """The runners on silent nodes go on, and want to publish when the next attempt has begun."""

    async def goes_with_a_notice(seed: int) -> Survival:
        chance = chance_of(seed)
        batch = await here.submit(f"notice-{seed}", rows=ROWS, tokens=TOKENS)
        await batch.until_done(chance.randint(1, ROWS // 2))
        taint = None if seed == DRAINED else chance.choice(CLOUD_TAINTS)
        dies_after = chance.uniform(0, 3)
        return await survive_notice(
            batch, codes, taint=taint, grace_seconds=GRACES[seed], dies_after=dies_after
        )

    async def falls_silent(seed: int) -> Survival:
        batch = await here.submit(f"silence-{seed}", rows=ROWS, tokens=TOKENS)
        await batch.until_done(chance_of(seed).randint(1, ROWS // 15))
        return await survive_silence(batch, codes, deaf=seed == DEAF)

    async with exits(here.stage, here.namespace) as codes:
        notices, silences = await asyncio.gather(
            asyncio.gather(*map(goes_with_a_notice, SEEDS)),
            asyncio.gather(*map(falls_silent, SEEDS)),
        )
    for one in (*notices, *silences):
        assert one.rows == ALL_ONCE
        assert (one.publisher, one.number) == (2, 2)
    for one in notices:
        assert one.noticed_seconds < 5
        assert one.code in STOPPED
    for seed, one in zip(SEEDS, silences, strict=True):
        assert one.wrote_late > 0, "the old runner went on beside the next attempt"
        assert one.code == (None if seed == DEAF else FENCED)


async def test_an_operator_killed_while_an_attempt_ends_repeats_no_number_and_loses_no_row(
    here: Shelf,
) -> None:
    batch = await here.submit("night", rows=FEW_ROWS, tokens=FEW_TOKENS)
    await batch.until_done(chance_of(1).randint(FEW_ROWS // 3, FEW_ROWS // 2))
    attempt, runner = await at_work(batch)
    here.stage.world.kill(here.namespace, runner.pod, RUNNER)
    await kill_operator(here.stage)
    status = await batch.completed()
    assert batch.judged() == ALL_ONCE
    _published_by(batch, status, attempt + 1)
    assert jobs_created(here) == {"night-check": 1, "night-a1": 1, "night-a2": 1}


async def test_suspend_ends_the_attempt_within_seconds_and_goes_on_with_the_rest(
    here: Shelf,
) -> None:
    batch = await here.submit("night", rows=FEW_ROWS, tokens=FEW_TOKENS)
    await batch.until_done(FEW_ROWS // 3)
    (attempt, _), begun = await at_work(batch), time.monotonic()
    await batch.patch(suspend=True)
    await until_gone(batch, attempt)
    await eventually(lambda: _engines(here), lambda left: not left)
    assert time.monotonic() - begun < 8
    await batch.until_condition("Running", "Suspended")
    assert batch.published() is None
    await batch.patch(suspend=False)
    progress = await batch.until_done(FEW_ROWS // 3, attempt + 1)
    assert progress["resentRows"] <= IN_FLIGHT
    status = await batch.completed()
    assert batch.judged() == ALL_ONCE
    _published_by(batch, status, attempt + 1)


async def _engines(here: Shelf) -> list[str]:
    return [
        one.pod
        for one in here.stage.world.containers()
        if (one.namespace, one.container) == (here.namespace, ENGINE)
    ]


async def test_an_exhausted_budget_holds_a_batch_until_its_limit_is_raised(here: Shelf) -> None:
    path = TENANT_BUDGETS.path(None, here.namespace)

    async def limit(amount: str) -> None:
        spec = {
            "owner": "anna@team-a.example",
            "tenant": {"namespaces": [here.namespace]},
            "timeZone": "Europe/Berlin",
            "limits": [{"window": "Month", "amount": amount}],
        }
        body = {
            "apiVersion": TENANT_BUDGETS.api_version,
            "kind": TENANT_BUDGETS.kind,
            "metadata": {"name": here.namespace},
        }
        await here.stage.api.apply(path, body | {"spec": spec}, "kubectl")

    await limit("0.000001")
    try:
        batch = await here.submit("night", rows=20, tokens=5)
        told = await batch.until_condition("Running", "BudgetExhausted")
        assert told["status"] == "False"
        assert await _jobs(here) == {"night-check"}
        assert await batch.number() == 0
        await limit("1000")
        _published_by(batch, await batch.completed(), 1)
    finally:
        await here.stage.api.delete(path)


async def _jobs(here: Shelf) -> set[str]:
    listed = await here.stage.api.get(JOBS.path(here.namespace))
    return {one["metadata"]["name"] for one in listed["items"]}


async def test_a_claim_of_one_node_is_refused_in_its_words(here: Shelf) -> None:
    api = here.stage.api
    early = await here.submit("early", rows=1, tokens=1, claimName="own")
    assert "does not exist" in (await early.until_condition("Accepted", "ClaimNotFound"))["message"]
    await api.apply(CLAIMS.path(here.namespace, "own"), a_claim("own", "ReadWriteOnce"), "kubectl")
    words = "spec.claimName: PersistentVolumeClaim/own has ReadWriteOnce (storage class world)"
    told = await early.until_condition("Accepted", "ClaimNotReadWriteMany")
    assert told["message"].startswith(words)
    with pytest.raises(ApiError, match=re.escape(words)):
        await here.submit("late", rows=1, tokens=1, claimName="own")
    assert await _jobs(here) == set()


async def test_a_job_that_is_deleted_by_hand_leads_to_the_next_attempt(here: Shelf) -> None:
    batch = await here.submit("night", rows=FEW_ROWS, tokens=FEW_TOKENS)
    await batch.until_done(FEW_ROWS // 3)
    job = f"job/night-a{await batch.number()}"
    await here.stage.run("kubectl", "--namespace", here.namespace, "delete", job)
    status = await batch.completed()
    assert "its Job no longer exists" in status["attempt"]["previousOutcome"]
    assert batch.judged() == ALL_ONCE
    _published_by(batch, status, 2)


async def test_a_runner_may_get_batches_of_its_namespace_and_nothing_else(here: Shelf) -> None:
    await here.submit("night", rows=1, tokens=1)
    own, anyone = f"{here.namespace}:{BATCH_ACCOUNT}", f"{here.namespace}:default"

    async def gained() -> set[str]:
        return await _allowed(here, own) - await _allowed(here, anyone)

    (line,) = await eventually(gained, bool)
    assert line.split() == ["batchinferences.tessera.dev", "[]", "[]", "[get]"]
    elsewhere = replace(here, namespace="default")
    assert await _allowed(elsewhere, own) == await _allowed(elsewhere, anyone)


async def _allowed(here: Shelf, account: str) -> set[str]:
    """What a ServiceAccount may do in a namespace, a line each."""
    told = await here.stage.run(
        *("kubectl", "auth", "can-i", "--list", "--no-headers"),
        *("--namespace", here.namespace, "--as", f"system:serviceaccount:{account}"),
    )
    return set(told.splitlines())


def _published_by(batch: Batch, status: Json, attempt: int) -> None:
    """The files are those of this attempt, which the status names."""
    record = batch.published()
    assert record is not None
    assert (record.attempt, number_in(status)) == (attempt, attempt)
    assert record.output.rows + record.errors.rows == batch.rows
    assert status["progress"]["completed"] == batch.rows
