"""Batches on spot nodes: whatever is lost, every row is published once."""

import asyncio
import itertools
import random
import re
from dataclasses import replace
from functools import partial

import pytest

from demo.cluster import NAMESPACE, InstalledCluster, Json, condition
from scenarios.actions import ScenarioNamespace
from scenarios.batches import (
    CONTEXT,
    IN_FLIGHT,
    MODEL,
    Batch,
    BatchNamespace,
    RowCounts,
    a_claim,
    attempt_number,
    create_shared_claim,
)
from scenarios.chaos import (
    CLOUD_TAINTS,
    NodeLossResult,
    count_created_jobs,
    lose_node_with_notice,
    lose_silent_node,
    record_runners,
    wait_for_runner,
    wait_until_runner_ends,
)
from scenarios.kills import kill_operator, read_operator_pod
from tessera.domain.batch.names import BATCH_ACCOUNT, RUNNER
from tessera.domain.kinds.kinds import BATCH_INFERENCES, TENANT_BUDGETS
from tessera.domain.names import ENGINE
from tessera.resources.api_resources import CLAIMS, JOBS, PODS, ROLE_BINDINGS
from world import World
from world.api import ApiError
from world.testing import eventually

SEEDS = (1, 2, 3)
# Seconds from the notice to the end of the node: GKE leaves 15.
GRACES = {1: 30, 2: 15, 3: 15}
# In this seed the node is cordoned, not tainted, and its pod evicted.
DRAINED = 3
# In this seed the pod is deleted, and the old runner cannot ask for the current attempt.
DELETED_POD = 3
ROWS = 300
# So that a batch takes 16 s, longer than a silent node is considered ready.
TOKENS = 60
FEW_ROWS = 150
ALL_ONCE = RowCounts(lost=0, duplicates=0, wrong=())
# Exit codes of a runner that got SIGTERM, or died with its node.
STOPPED = (0, 137)
# Exit code of a runner that is not the current attempt any more.
FENCED = 4
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@pytest.fixture
async def namespace(cluster: InstalledCluster) -> BatchNamespace:
    """A namespace for one test. It is not deleted, since the world has a node for each batch."""
    name = f"batches-{next(_numbers)}"
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return await create_shared_claim(cluster, name)


def seeded_random(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a seeded course, no secret


async def test_rows_survive_the_loss_of_nodes_with_a_notice_and_without(
    namespace: BatchNamespace, pytestconfig: pytest.Config
) -> None:
    """The runners on silent nodes go on, and try to publish when the next attempt has started."""
    seeds = SEEDS if pytestconfig.getoption("--full") else SEEDS[:1]

    async def lose_with_notice(seed: int) -> NodeLossResult:
        rng = seeded_random(seed)
        batch = await namespace.submit(f"notice-{seed}", rows=ROWS, tokens=TOKENS)
        await batch.wait_for_rows(rng.randint(1, ROWS // 2))
        taint = None if seed == DRAINED else rng.choice(CLOUD_TAINTS)
        dies_after = rng.uniform(0, 3)
        return await lose_node_with_notice(
            batch, record, taint=taint, grace_seconds=GRACES[seed], dies_after=dies_after
        )

    async def lose_silently(seed: int) -> NodeLossResult:
        batch = await namespace.submit(f"silence-{seed}", rows=ROWS, tokens=TOKENS)
        await batch.wait_for_rows(seeded_random(seed).randint(1, ROWS // 15))
        return await lose_silent_node(batch, record, delete_pod=seed == DELETED_POD)

    async with record_runners(namespace.cluster, namespace.name) as record:
        notices, silences = await asyncio.gather(
            asyncio.gather(*map(lose_with_notice, seeds)),
            asyncio.gather(*map(lose_silently, seeds)),
        )
    for loss in (*notices, *silences):
        assert loss.rows == ALL_ONCE
        # Each attempt ends with its node, also one that is only late, and for nothing else.
        last_attempt = 2 + loss.other_losses
        assert (loss.publisher, loss.final_attempt) == (last_attempt, last_attempt)
    for loss in notices:
        assert loss.noticed_seconds < 30
        assert loss.exit_code in STOPPED
    for seed, loss in zip(seeds, silences, strict=True):
        assert loss.late_bytes > 0, "the old runner went on beside the next attempt"
        assert loss.exit_code == (None if seed == DELETED_POD else FENCED)


@pytest.mark.full
async def test_an_operator_killed_while_an_attempt_ends_repeats_no_number_and_loses_no_row(
    namespace: BatchNamespace,
) -> None:
    batch = await namespace.submit("night", rows=FEW_ROWS, tokens=TOKENS)
    await batch.wait_for_rows(seeded_random(1).randint(FEW_ROWS // 3, FEW_ROWS // 2))
    attempt, runner = await wait_for_runner(batch)
    namespace.cluster.world.kill(namespace.name, runner.pod, RUNNER)
    await kill_operator(namespace.cluster)
    status = await batch.wait_until_completed()
    assert batch.count_rows() == ALL_ONCE
    _assert_published_by(batch, status, attempt + 1)
    assert count_created_jobs(namespace) == {"night-check": 1, "night-a1": 1, "night-a2": 1}


@pytest.mark.full
async def test_suspend_ends_the_attempt_and_goes_on_with_the_rest(
    namespace: BatchNamespace,
) -> None:
    batch = await namespace.submit("night", rows=FEW_ROWS, tokens=TOKENS)
    await batch.wait_for_rows(FEW_ROWS // 3)
    attempt, _ = await wait_for_runner(batch)
    await batch.patch(suspend=True)
    await wait_until_runner_ends(batch, attempt)

    async def engine_has_ended() -> None:
        containers = namespace.cluster.world.containers()
        names = {(container.namespace, container.container) for container in containers}
        assert (namespace.name, ENGINE) not in names

    await eventually(engine_has_ended)
    await batch.wait_for_condition("Running", "Suspended")
    assert batch.publication_record() is None
    await batch.patch(suspend=False)
    progress = await batch.wait_for_rows(FEW_ROWS // 3, attempt + 1)
    assert progress["resentRows"] <= IN_FLIGHT
    status = await batch.wait_until_completed()
    assert batch.count_rows() == ALL_ONCE
    _assert_published_by(batch, status, attempt + 1)


@pytest.mark.full
async def test_finished_batches_that_became_due_while_nobody_led_are_deleted_after_a_restart(
    namespace: BatchNamespace,
) -> None:
    """Their checks fail, so that they need no hardware."""
    cluster = namespace.cluster
    await namespace.submit("at-once", rows=0, tokens=1, ttlAfterFinished="0s")
    await eventually(partial(_assert_batches, namespace, set()))
    batches = [await namespace.submit(f"due-{number}", rows=0, tokens=1) for number in range(12)]
    await asyncio.gather(*(batch.wait_until_finished() for batch in batches))
    scale = ("kubectl", "--namespace", NAMESPACE, "scale", "deployment/tessera-operator")
    await cluster.run(*scale, "--replicas=0")

    async def operator_has_ended() -> None:
        containers = cluster.world.containers()
        assert [each.pod for each in containers if each.container == "operator"] == []

    await eventually(operator_has_ended)
    for batch in batches:
        await batch.patch(ttlAfterFinished="0s")
    await _assert_batches(namespace, {batch.name for batch in batches})
    await cluster.run(*scale, "--replicas=1")
    await eventually(partial(_assert_batches, namespace, set()))
    operator = await read_operator_pod(cluster)
    assert operator["status"]["containerStatuses"][0]["restartCount"] == 0


async def _assert_batches(namespace: BatchNamespace, names: set[str]) -> None:
    batch_list = await namespace.cluster.api.get(BATCH_INFERENCES.path(namespace.name))
    assert {batch["metadata"]["name"] for batch in batch_list["items"]} == names


@pytest.mark.full
async def test_a_batch_goes_on_with_the_model_that_its_service_had_when_it_began(
    namespace: BatchNamespace,
) -> None:
    services = ScenarioNamespace(namespace.cluster, namespace.name)
    await services.apply_service(model={"uri": MODEL}, context=CONTEXT, replicas=0)
    batch = await namespace.submit("night", rows=FEW_ROWS, tokens=TOKENS, service="chat")
    await batch.wait_for_rows(FEW_ROWS // 3)
    await services.apply_service(replicas=0)

    async def another_model_is_noticed() -> str:
        message: str = condition(await batch.get(), "Accepted").get("message", "")
        assert "InferenceService/chat has another" in message
        return message

    namespace.cluster.say(await eventually(another_model_is_noticed))
    attempt, runner = await wait_for_runner(batch)
    namespace.cluster.world.kill(namespace.name, runner.pod, RUNNER)
    await batch.wait_for_rows(FEW_ROWS // 3, attempt + 1)
    engine = batch.running_container(ENGINE, attempt + 1)
    assert engine is not None
    pod = await namespace.cluster.api.get(PODS.path(namespace.name, engine.pod))
    assert MODEL.removeprefix("hf://") in str(pod["spec"])
    await batch.wait_until_completed()
    assert batch.count_rows() == ALL_ONCE


@pytest.mark.full
async def test_an_exhausted_budget_holds_a_batch_until_its_limit_is_raised(
    namespace: BatchNamespace,
) -> None:
    path = TENANT_BUDGETS.path(None, namespace.name)

    async def set_limit(amount: str) -> None:
        spec = {
            "owner": "anna@team-a.example",
            "tenant": {"namespaces": [namespace.name]},
            "timeZone": "Europe/Berlin",
            "limits": [{"window": "Month", "amount": amount}],
        }
        body = {
            "apiVersion": TENANT_BUDGETS.api_version,
            "kind": TENANT_BUDGETS.kind,
            "metadata": {"name": namespace.name},
        }
        await namespace.cluster.api.apply(path, body | {"spec": spec}, "kubectl")

    await set_limit("0.000001")
    try:
        batch = await namespace.submit("night", rows=20, tokens=5)
        condition = await batch.wait_for_condition("Running", "BudgetExhausted")
        assert condition["status"] == "False"
        assert await _list_job_names(namespace) == {"night-check"}
        assert await batch.current_attempt() == 0
        await set_limit("1000")
        _assert_published_by(batch, await batch.wait_until_completed(), 1)
    finally:
        await namespace.cluster.api.delete(path)


async def _list_job_names(namespace: BatchNamespace) -> set[str]:
    job_list = await namespace.cluster.api.get(JOBS.path(namespace.name))
    return {job["metadata"]["name"] for job in job_list["items"]}


async def test_a_claim_of_one_node_is_rejected_with_its_access_mode(
    namespace: BatchNamespace,
) -> None:
    api = namespace.cluster.api
    early = await namespace.submit("early", rows=1, tokens=1, claimName="own")
    condition = await early.wait_for_condition("Accepted", "ClaimNotFound")
    assert "does not exist" in condition["message"]
    await api.apply(CLAIMS.path(namespace.name, "own"), a_claim("own", "ReadWriteOnce"), "kubectl")
    message = "spec.claimName: PersistentVolumeClaim/own has ReadWriteOnce (storage class world)"
    condition = await early.wait_for_condition("Accepted", "ClaimNotReadWriteMany")
    assert condition["message"].startswith(message)
    with pytest.raises(ApiError, match=re.escape(message)):
        await namespace.submit("late", rows=1, tokens=1, claimName="own")
    assert await _list_job_names(namespace) == set()


@pytest.mark.full
async def test_a_job_that_is_deleted_by_hand_leads_to_the_next_attempt(
    namespace: BatchNamespace,
) -> None:
    batch = await namespace.submit("night", rows=FEW_ROWS, tokens=TOKENS)
    await batch.wait_for_rows(FEW_ROWS // 3)
    job = f"job/night-a{await batch.current_attempt()}"
    await namespace.cluster.run("kubectl", "--namespace", namespace.name, "delete", job)
    status = await batch.wait_until_completed()
    # The operator may hear of the pod first.
    seen = ("its Job no longer exists", "is being deleted")
    assert any(text in status["attempt"]["previousOutcome"] for text in seen)
    assert batch.count_rows() == ALL_ONCE
    _assert_published_by(batch, status, 2)


async def test_a_runner_may_get_batches_of_its_namespace_and_nothing_else(
    namespace: BatchNamespace,
) -> None:
    await namespace.submit("night", rows=1, tokens=1)
    runner_account = f"{namespace.name}:{BATCH_ACCOUNT}"
    default_account = f"{namespace.name}:default"
    binding = ROLE_BINDINGS.path(namespace.name, BATCH_ACCOUNT)
    await eventually(partial(namespace.cluster.api.get, binding))
    default_rules = await _list_allowed(namespace, default_account)

    async def rule_is_added() -> None:
        added_rules = await _list_allowed(namespace, runner_account) - default_rules
        rules = [line.split() for line in added_rules]
        assert rules == [["batchinferences.tessera.dev", "[]", "[]", "[get]"]]

    await eventually(rule_is_added)
    elsewhere = replace(namespace, name="default")
    allowed = await _list_allowed(elsewhere, runner_account)
    assert allowed == await _list_allowed(elsewhere, default_account)


async def _list_allowed(namespace: BatchNamespace, account: str) -> set[str]:
    """Return what a ServiceAccount may do in a namespace, a line each."""
    output = await namespace.cluster.run(
        *("kubectl", "auth", "can-i", "--list", "--no-headers"),
        *("--namespace", namespace.name, "--as", f"system:serviceaccount:{account}"),
    )
    return set(output.splitlines())


def _assert_published_by(batch: Batch, status: Json, attempt: int) -> None:
    """Assert that the files are those of this attempt, which the status names."""
    record = batch.publication_record()
    assert record is not None
    assert (record.attempt, attempt_number(status)) == (attempt, attempt)
    assert record.output.rows + record.errors.rows == batch.rows
    assert status["progress"]["completed"] == batch.rows
