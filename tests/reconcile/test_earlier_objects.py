"""Cycles on what Tessera 0.1 left in a cluster, as e2e/scenarios/earlier_objects.py recorded it."""

import contextlib
import copy
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity
from typing_extensions import override

from tessera.api.model_files import PoolingTask
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import FIELD_MANAGER, MANAGED_BY, UPDATE_ANNOTATION
from tessera.resources.api_resources import DEPLOYMENTS, JOBS, KINDS, PODS
from tessera.resources.defaults import newest_version
from tessera.resources.manifest import ObjectKey
from tests.memory_operator import MemoryOperator, SilentEngines

RECORDED = Path(__file__).with_name("objects-of-tessera-48e4eabe.jsonl")
_RUNS = (DEPLOYMENTS.plural, PODS.plural, JOBS.plural)


class AnsweringEngines(SilentEngines):
    """Engines that answer what they are asked."""

    @override
    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        return None


@pytest.fixture
async def operator() -> MemoryOperator:
    """An operator of today that has just replaced that of 0.1.

    Who owned which field is not recorded, so what 0.1 wrote and today's does not write stays.
    """
    header, *lines = map(json.loads, RECORDED.read_text(encoding="utf-8").splitlines())
    operator = MemoryOperator(engines=AnsweringEngines())
    operator.builder = newest_version()
    operator.at = datetime.fromisoformat(header["recorded"]) + timedelta(minutes=1)
    operator.restart()
    kinds = {kind.plural: kind for kind in KINDS}
    for line in lines:
        kind, metadata = kinds[line["plural"]], line["body"]["metadata"]
        operator.cluster.put(kind, line["body"], "kubernetes")
        if metadata.get("labels", {}).get(MANAGED_BY) == "tessera":
            own = {name: metadata[name] for name in ("name", "namespace", "labels")}
            operator.cluster.put(kind, {"metadata": own}, FIELD_MANAGER)
    return operator


def runs(operator: MemoryOperator) -> dict[ObjectKey, Any]:
    """Return UIDs of all that runs engines, and what makes their pods."""
    return {
        key: (
            body["metadata"]["uid"],
            copy.deepcopy({each: body["spec"].get(each) for each in ("replicas", "template")}),
        )
        for key, body in operator.cluster.objects.items()
        if key.plural in _RUNS
    }


def changes(spec: Any, recorded: Any, at: str) -> list[str]:
    """Return what a written spec has otherwise than the recorded one, to which defaults belong."""
    if isinstance(spec, dict) and isinstance(recorded, dict):
        return [
            change
            for name, value in spec.items()
            for change in changes(value, recorded.get(name), f"{at}.{name}")
        ]
    if isinstance(spec, list) and isinstance(recorded, list) and len(spec) == len(recorded):
        pairs = enumerate(zip(spec, recorded, strict=True))
        return [change for n, pair in pairs for change in changes(*pair, f"{at}[{n}]")]
    with contextlib.suppress(ValueError):
        if at.endswith((".memory", ".sizeLimit")):
            spec = parse_quantity(spec)  # type: ignore[no-untyped-call]  # partly typed package
            recorded = parse_quantity(recorded)  # type: ignore[no-untyped-call]  # partly typed
    # The API server leaves out what is false or empty.
    return [] if spec == recorded or not (spec or recorded) else [f"{at}: {recorded} -> {spec}"]


def accepted(operator: MemoryOperator) -> dict[str, str]:
    return {
        key.name: condition["reason"]
        for key, body in operator.cluster.objects.items()
        if key.plural == INFERENCE_SERVICES.plural
        for condition in body["status"]["conditions"]
        if condition["type"] == "Accepted"
    }


async def test_an_upgrade_leaves_all_that_runs_as_it_is_and_reads_every_object(
    operator: MemoryOperator,
) -> None:
    before = runs(operator)
    for _ in range(4):
        outcome = await operator.reconcile()
        assert outcome.problems == {}
        operator.at += timedelta(seconds=30)
    after = runs(operator)
    assert after.keys() == before.keys()
    for key, (uid, spec) in after.items():
        assert uid == before[key][0]
        assert changes(spec, before[key][1], key.name) == []
    assert accepted(operator) == {
        "asleep": "Valid",
        "fixed": "Valid",
        "labelled": "UnsupportedPodKeys",
        "scaled": "Valid",
        "shared": "Valid",
        "tier": "Valid",
    }


async def test_a_requested_update_of_what_0_1_left_is_a_rollout(operator: MemoryOperator) -> None:
    before = runs(operator)
    await operator.reconcile()
    key = ObjectKey(INFERENCE_SERVICES.plural, "team-a", "fixed")
    metadata = {**operator.body(key)["metadata"], "annotations": {UPDATE_ANNOTATION: "now"}}
    operator.cluster.put(INFERENCE_SERVICES, {"metadata": metadata}, "kubectl-annotate")
    await operator.reconcile()
    (added,) = runs(operator).keys() - before.keys()
    assert (added.plural, added.name.rpartition("-")[0]) == (
        DEPLOYMENTS.plural,
        "fixed-a100-reserved-1g-10gb",
    )
