"""Changes of a gated service: a worse one is refused, an equal one rolled out, whatever fails."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from demo.charges import set_price
from demo.ready_replicas import watch_minimum_ready
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.commands import run_tessera
from scenarios.gates import GATE, PROMPTS_A_STRATUM, GatedNamespace, streaming
from scenarios.gateway import Gateway, is_charged
from scenarios.kills import kill_operator
from scenarios.lifecycle import write_fleet
from scenarios.streams import wait_for_replicas
from tessera.domain.names import VARIANT_LABEL
from tessera.domain.quality.names import PRECISIONS_ANNOTATION
from tessera.resources.api_resources import CONTROLLER_REVISIONS, PODS
from world import World, start
from world.testing import eventually, is_ready

_STRATA = {
    *("arithmetic", "code", "exact-format", "german", "japanese", "long-input", "multi-step"),
    *("rare-formats", "swahili", "tool-calls"),
}
_ALL = PROMPTS_A_STRATUM * len(_STRATA)
_REPLICAS = 2
# Of the fleet.
_DEVICES = 8
# What engines answer: a tenth wrongly; as much as before, though to other prompts.
_GOOD: dict[str, Any] = {}
_WORSE: dict[str, Any] = {"wrongShare": 0.1}
# Of a quantization that went wrong: what is short is as before, and long ways are lost.
_BROKEN: dict[str, Any] = {"strata": {"multi-step": 0.9, "long-input": 0.6}}
_OTHER_OPTION = {"extraArgs": ["--max-logprobs=5"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@pytest.fixture
async def priced(gateway: Gateway) -> Gateway:
    """The gateway, which Jobs of gates ask, and a tenant with a price of its model."""
    namespace = gateway.namespace
    await set_price(namespace.cluster, namespace.name, "chat")
    return gateway


@pytest.fixture
async def gated(namespace: ScenarioNamespace) -> GatedNamespace:
    """A gated service with a stable version that answers every prompt rightly."""
    return await _gated(namespace)


async def _gated(namespace: ScenarioNamespace, **spec: Any) -> GatedNamespace:
    # Engines have a /tmp of their own.
    gated = GatedNamespace(namespace, namespace.cluster.world.folder / f"{namespace.name}.jsonl")
    await gated.apply_gate()
    await gated.apply_service(_GOOD, replicas=_REPLICAS, **spec)
    await namespace.wait_until_ready()
    await wait_for_replicas(namespace, _REPLICAS)

    async def is_recorded() -> None:
        assert "stableRevision" in await namespace.service_status()

    await eventually(is_recorded)
    return gated


async def test_a_worse_version_is_refused_and_the_table_says_why(gated: GatedNamespace) -> None:
    namespace = gated.namespace
    before, templates = await gated.engine_pods(), await gated.templates()
    revision = (await namespace.service_status())["stableRevision"]
    async with streaming(namespace) as ends:
        await gated.apply_service(_WORSE, replicas=_REPLICAS)
        candidate = await gated.wait_for_candidate(set(before))
        record = await gated.wait_for_record("Failed")
        condition = await namespace.wait_for_condition("chat", "Progressing", "RolledBack")
    assert not is_ready(candidate)
    assert ends.broken == []
    assert ends.finished > 0
    status = await namespace.service_status()
    assert status["stableRevision"] == revision
    assert record["changes"] == ["spec.podTemplate.env"]
    await namespace.check_condition("chat", "Ready", "CompletionSucceeded")
    assert condition["status"] == "False"
    (verdict,) = (await gated.gate_status())["verdicts"]
    rows = {row["name"]: row for row in verdict["strata"]}
    total = rows["total"]
    assert (verdict["reason"], total["prompts"], total["isLost"]) == ("Failed", _ALL, True)
    assert float(total["baseline"]) == 1.0
    assert float(total["lossPoints"]) == pytest.approx(10)
    assert rows.keys() == {"total", *_STRATA}
    for answers in ("baselineAnswers", "candidateAnswers"):
        assert float(verdict[answers]["ttftP95Seconds"]) > 0
        assert float(verdict[answers]["usdPerMillionTokens"]) > 0
    shown = await namespace.cluster.tessera("gate", "show", "-n", namespace.name, GATE)
    namespace.cluster.say(shown)
    assert "Failed" in shown

    async def only_stable_remains() -> None:
        assert (await gated.engine_pods()).keys() == before.keys()
        assert await gated.templates() == templates

    await eventually(only_stable_remains)
    await _is_not_tried_again(gated)


async def _is_not_tried_again(gated: GatedNamespace) -> None:
    """Another edit that changes no answer leaves the refused version refused."""
    await gated.apply_service(_WORSE, replicas=_REPLICAS + 1)
    await wait_for_replicas(gated.namespace, _REPLICAS + 1)
    assert len((await gated.gate_status())["verdicts"]) == 1
    assert len(await gated.engine_pods()) == _REPLICAS + 1


async def test_an_equal_version_is_rolled_out_without_a_lost_stream_and_keeps_its_replica(
    priced: Gateway, gated: GatedNamespace
) -> None:
    namespace = gated.namespace
    await eventually(partial(is_charged, priced), within=180)
    before = await gated.engine_pods()
    revision = (await namespace.service_status())["stableRevision"]
    async with streaming(namespace) as ends:
        await gated.apply_service(_GOOD, replicas=_REPLICAS, engine=_OTHER_OPTION)
        candidate = await gated.wait_for_candidate(set(before))
        record = await gated.wait_for_record("Passed")
        await _wait_until_rolled_out(gated, set(before))
    after = await gated.engine_pods()
    assert candidate["metadata"]["uid"] in after
    assert ends.broken == []
    assert ends.finished > 0
    assert "spec.engine.extraArgs" in record["changes"]
    await _is_paid_for(priced)
    assert (await namespace.service_status())["stableRevision"] != revision
    # What was stable a short time ago comes back without a gate.
    await gated.apply_service(_GOOD, replicas=_REPLICAS)
    await gated.wait_for_record("RolledBackTo")
    await _wait_until_rolled_out(gated, set(after))
    assert len((await gated.gate_status())["verdicts"]) == 1


async def _is_paid_for(gateway: Gateway) -> None:
    """Assert that the tenant paid for each prompt of both versions, as an evaluation."""
    address = f"http://{gateway.pod_address}:8080"
    command = ("cost", "--by", "class", "--gateway", address, "--since", "1h", "-o", "json")

    async def all_is_stored() -> None:
        result = await run_tessera(gateway.namespace.cluster, *command)
        assert result.code == 0, result.errors
        gateway.namespace.cluster.say(result.output)
        (row,) = (each for each in result.json["rows"] if each["class"] == "Evaluation")
        # The stable version answers the suite twice.
        assert row["requests"] == 3 * _ALL
        assert float(row["charge"]) > 0

    # Of a tenant with more than 1,200 requests in a minute, the rest is stored after its end.
    await eventually(all_is_stored)


async def _wait_until_rolled_out(gated: GatedNamespace, old: set[str]) -> None:
    async def is_rolled_out() -> None:
        pods = await gated.engine_pods()
        assert old & pods.keys() == set()
        assert len(pods) == _REPLICAS
        await gated.namespace.check_condition("chat", "Progressing", "RolloutComplete")

    await eventually(is_rolled_out)


@pytest.mark.full
@pytest.mark.parametrize(
    ("answers", "engine", "reason"),
    [(_GOOD, _OTHER_OPTION, "Passed"), (_WORSE, {}, "Failed")],
    ids=["equal", "worse"],
)
async def test_a_change_ends_the_same_though_the_operator_is_killed_in_each_step(
    gated: GatedNamespace, answers: dict[str, Any], engine: dict[str, Any], reason: str
) -> None:
    namespace = gated.namespace
    cluster, before = namespace.cluster, await gated.engine_pods()
    async with (
        watch_minimum_ready(cluster, namespace.name) as minimum,
        streaming(namespace) as ends,
    ):
        await gated.apply_service(answers, replicas=_REPLICAS, engine=engine)
        await kill_operator(cluster)
        await gated.wait_for_candidate(set(before))
        await kill_operator(cluster)
        await gated.wait_for_job("baseline")
        await kill_operator(cluster)
        await gated.wait_for_job("candidate")
        await kill_operator(cluster)
        await gated.wait_for_record(reason)
        await kill_operator(cluster)
        if reason == "Passed":
            await _wait_until_rolled_out(gated, set(before))
        else:
            await namespace.wait_for_condition("chat", "Progressing", "RolledBack")
    cluster.say(f"{ends}, at least {minimum.replicas['chat']} of {_REPLICAS} replicas Ready")
    assert ends.broken == []
    assert minimum.replicas["chat"] >= _REPLICAS
    records = (await namespace.service_status())["rollouts"]
    assert [each["reason"] for each in records if each["reason"] in ("Passed", "Failed")] == [
        reason
    ]
    assert len((await gated.gate_status())["verdicts"]) == 1


@pytest.mark.full
@pytest.mark.parametrize("role", ["baseline", "candidate"])
async def test_a_job_that_is_evicted_goes_on_where_it_ended(
    gated: GatedNamespace, role: str
) -> None:
    namespace = gated.namespace
    await gated.apply_service(_WORSE, replicas=_REPLICAS)
    pod = await gated.wait_for_job(role)
    name = pod["metadata"]["name"]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace.name},
    }
    await namespace.cluster.api.create(f"{PODS.path(namespace.name, name)}/eviction", body)
    await gated.wait_for_record("Failed")
    (verdict,) = (await gated.gate_status())["verdicts"]
    (total,) = (row for row in verdict["strata"] if row["name"] == "total")
    assert total["prompts"] == _ALL


@pytest.mark.full
async def test_a_device_that_goes_back_to_users_delays_the_trial_that_had_it(
    gated: GatedNamespace,
) -> None:
    namespace = gated.namespace
    await gated.apply_service(_WORSE, replicas=_REPLICAS)
    await gated.wait_for_job("candidate")
    await gated.apply_service(_WORSE, replicas=_DEVICES)
    await wait_for_replicas(namespace, _DEVICES)
    condition = await namespace.wait_for_condition(
        "chat", "Progressing", "NoSurgeCapacity", words=("is free", "since")
    )
    namespace.cluster.say(condition["message"])
    await gated.apply_service(_WORSE, replicas=_REPLICAS)
    pod = await gated.wait_for_job("candidate")
    digests = [arg for arg in pod["spec"]["containers"][0]["args"] if "--answers-digest=" in arg]
    assert [len(each.partition("=")[2]) for each in digests] == [64]
    await gated.wait_for_record("Failed")
    (verdict,) = (await gated.gate_status())["verdicts"]
    (total,) = (row for row in verdict["strata"] if row["name"] == "total")
    assert total["prompts"] == _ALL


@pytest.mark.full
async def test_a_precision_that_would_be_chosen_is_tried_before_it_serves(
    namespace: ScenarioNamespace,
) -> None:
    gated = await _gated(namespace, precision={"variants": [{"precision": "fp8"}]})
    revision = (await namespace.service_status())["stableRevision"]
    path = CONTROLLER_REVISIONS.path(namespace.name, revision)

    async def precisions() -> str:
        meta = (await namespace.cluster.api.get(path))["metadata"]
        return str(meta["annotations"][PRECISIONS_ANNOTATION])

    assert await precisions() == "fp8"
    before = await gated.engine_pods()
    async with streaming(namespace) as ends:
        # As after an edit that was tried in the precision of the model's own files.
        body = {"metadata": {"annotations": {PRECISIONS_ANNOTATION: "checkpoint"}}}
        await namespace.cluster.api.patch(path, body)
        await gated.wait_for_job("candidate")
        tried = [pod for pod in (await gated.engine_pods()).values() if _is_in_fp8(pod)]
        assert [is_ready(pod) for pod in tried if pod["metadata"]["uid"] not in before] == [False]
        record = await gated.wait_for_record("Passed")

    assert record["changes"] == ["spec.precision: fp8"]
    assert ends.broken == []
    assert ends.finished > 0

    async def may_serve() -> None:
        assert await precisions() == "checkpoint,fp8"

    await eventually(may_serve)
    status = await namespace.service_status()
    assert status["stableRevision"] == revision
    shown = await namespace.cluster.tessera("gate", "show", "-n", namespace.name, GATE)
    namespace.cluster.say(shown)
    assert "PRECISION" in shown


def _is_in_fp8(pod: dict[str, Any]) -> bool:
    return str(pod["metadata"]["labels"][VARIANT_LABEL]).endswith("-fp8")


@pytest.mark.full
async def test_a_candidate_that_the_budget_refuses_waits_and_stable_serves(
    gated: GatedNamespace,
) -> None:
    namespace = gated.namespace
    await gated.apply_service(_GOOD, replicas=1)
    await wait_for_replicas(namespace, 1)
    before = await gated.engine_pods()

    async def is_budgeted() -> None:
        tenant = (await namespace.service_status()).get("tenant", {})
        assert tenant.get("budget") == namespace.name, tenant

    # What one replica costs in ten minutes, for which a budget has to pay, is more.
    async with a_budget(namespace, "0.01"):
        await eventually(is_budgeted)
        await gated.apply_service(_GOOD, replicas=1, engine=_OTHER_OPTION)
        words = (f"TenantBudget/{namespace.name}",)
        condition = await namespace.wait_for_condition(
            "chat", "Progressing", "NoSurgeCapacity", words=words
        )
        namespace.cluster.say(condition["message"])
        assert (await gated.engine_pods()).keys() == before.keys()
        await namespace.check_condition("chat", "Ready", "CompletionSucceeded")
    # With money again the same edit is tried and rolled out.
    await gated.wait_for_record("Passed")


@pytest.mark.full
async def test_broken_quantization_is_refused_by_the_strata_that_it_breaks(
    gated: GatedNamespace,
) -> None:
    namespace = gated.namespace
    await gated.apply_service(
        _BROKEN, replicas=_REPLICAS, precision={"variants": [{"precision": "fp8"}]}
    )
    record = await gated.wait_for_record("Failed")
    assert {each.split(".")[1] for each in record["changes"]} == {"podTemplate", "precision"}
    (verdict,) = (await gated.gate_status())["verdicts"]
    lost = {row["name"] for row in verdict["strata"] if row["isLost"]}
    assert lost == {"multi-step", "long-input", "total"}
    await namespace.check_condition("chat", "Ready", "CompletionSucceeded")


@pytest.mark.full
async def test_a_first_version_serves_once_it_has_its_score_and_by_no_answer_of_another(
    namespace: ScenarioNamespace,
) -> None:
    gated = GatedNamespace(namespace, namespace.cluster.world.folder / f"{namespace.name}.jsonl")
    await gated.apply_gate(minScore="0.95")
    await gated.apply_service(_GOOD, replicas=_REPLICAS)
    assert not is_ready(await gated.wait_for_candidate(set()))
    await gated.wait_for_job("candidate")
    await gated.apply_service(_WORSE, replicas=_REPLICAS)
    await gated.wait_for_record("Failed")
    condition = await namespace.wait_for_condition("chat", "Ready", "GateNotPassed")
    namespace.cluster.say(condition["message"])
    (verdict,) = (await gated.gate_status())["verdicts"]
    (total,) = (row for row in verdict["strata"] if row["name"] == "total")
    assert (float(total["baseline"]), float(total["candidate"])) == (0.95, 0.9)

    async def none_remains() -> None:
        assert await gated.engine_pods() == {}

    await eventually(none_remains)
    await gated.apply_service(_GOOD, replicas=_REPLICAS)
    tried = await gated.wait_for_candidate(set())
    await gated.wait_for_record("Passed")
    await wait_for_replicas(namespace, _REPLICAS)
    assert tried["metadata"]["uid"] in await gated.engine_pods()
    await namespace.check_condition("chat", "Ready", "CompletionSucceeded")
