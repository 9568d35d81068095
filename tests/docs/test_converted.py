"""Manifests that other platforms publish: converted and planned, or refused with a reason."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from converted_page import FOLDER, read_sources
from environments import ROOT
from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.inference_service import InferenceServiceSpec
from tessera.controller.admission import review_service
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Node, ObservedService, Pool
from tessera.domain.placement.checks import shape_of
from tessera.domain.planning.plan import Plan
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import version_facts
from tessera.reconcile.store import Store
from tessera.resources import children
from tessera.resources.api_resources import KINDS
from tessera_lab.cli.simulate.crd_rules import broken_rules, name_fault
from tests.builders import a_node, a_snapshot, plan_of

CONVERTED = ROOT / FOLDER
SOURCES = {source["name"]: source for source in read_sources(ROOT)}
REFUSED = sorted(name for name, source in SOURCES.items() if "refused" in source)
ACCEPTED = sorted(SOURCES.keys() - set(REFUSED))
# Whole GPUs of each pool; the slices are another node's.
GPUS = {"l4": 16, "a100": 16, "h100": 32, "gh200": 1, "b200": 8}
SLICES = {"1g.10gb": 21, "3g.40gb": 4}


def body_of(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    body["metadata"]["uid"] = f"uid-{path.stem}"
    return body


@cache
def pools() -> tuple[Pool, ...]:
    bodies = yaml.safe_load_all((CONVERTED / "00-pools.yaml").read_text(encoding="utf-8"))
    return tuple(
        parse_own(ACCELERATOR_POOLS, body) for body in bodies if body["kind"] == "AcceleratorPool"
    )


def nodes() -> tuple[Node, ...]:
    products = {
        pool.name: pool.spec.node_selector["nvidia.com/gpu.product"]
        for pool in pools()
        if pool.spec
    }
    return (
        *(
            a_node(pool, whole=min(8, count), product=products[pool], name=f"{pool}-{index}")
            for pool, count in GPUS.items()
            for index in range(-(-count // 8))
        ),
        a_node("a100-slices", SLICES, partitioned=5, product=products["a100-slices"]),
    )


@cache
def services() -> Mapping[str, ObservedService]:
    return {
        name: parse_own(INFERENCE_SERVICES, body_of(CONVERTED / f"{name}.yaml"))
        for name in ACCEPTED
    }


@cache
def fleet_plan() -> Plan:
    """Plan all of them at once, so that none takes the hardware of another."""
    return plan_of(a_snapshot(*services().values(), pools=pools(), nodes=nodes()))


def test_ten_manifests_of_each_kind_were_listed_and_most_are_converted() -> None:
    kinds = Counter(kind for source in SOURCES.values() for kind in source["kinds"])
    assert len(SOURCES) >= 30
    assert {kind: count for kind, count in kinds.items() if count < 10} == {}
    assert len(ACCEPTED) >= 24
    addresses = {(source["repository"], source["path"]) for source in SOURCES.values()}
    assert len(addresses) == len(SOURCES)


def test_each_listed_manifest_is_converted_or_refused() -> None:
    files = {path.stem for path in CONVERTED.glob("*.yaml")} - {"00-pools"}
    assert files == set(ACCEPTED)
    assert {path.stem for path in (CONVERTED / "refused").glob("*.yaml")} == set(REFUSED)


@pytest.mark.parametrize("name", SOURCES)
def test_a_manifest_names_its_source_and_what_differs_first(name: str) -> None:
    source = SOURCES[name]
    path = CONVERTED / ("refused" if "refused" in source else "") / f"{name}.yaml"
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert first == f"# From {source['repository']}, {source['path']} ({source['kind']})."
    assert rest.startswith("# ") or "refused" in source, "say what differs"
    metadata = yaml.safe_load(rest)["metadata"]
    assert metadata == {"name": name, "namespace": "converted"}
    assert name_fault("InferenceService", name) is None


def spec_of(name: str) -> InferenceServiceSpec:
    """Return the spec of a converted manifest."""
    service = services()[name]
    assert service.spec is not None, service.problem
    return service.spec


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_converted_manifest_is_admitted(name: str) -> None:
    spec = spec_of(name)
    assert [*broken_rules(spec)] == []
    refusals, _ = review_service(body_of(CONVERTED / f"{name}.yaml"), Store(KINDS))
    assert refusals == []
    assert shape_of(spec) is not None


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_converted_manifest_is_placed_as_it_asks_with_flags_that_its_engine_knows(
    name: str,
) -> None:
    spec = spec_of(name)
    service_plan = fleet_plan().service_plans[services()[name].ref]
    choice = service_plan.placement.choice
    assert choice is not None, service_plan.placement.verdict.message
    assert choice.offer.pool in (spec.placement.pools or GPUS.keys() | {"a100-slices"})
    asked = body_of(CONVERTED / f"{name}.yaml")["spec"]
    devices = choice.offer.hardware.devices
    assert devices == asked.get("engine", {}).get("tensorParallelSize", devices)
    assert devices > 1 or "SeveralGpus" not in SOURCES[name]["kinds"]
    deployments = [
        manifest.body
        for manifest in children.service_manifests(service_plan)
        if manifest.kind.kind == "Deployment"
    ]
    # Files of a store are downloaded to a claim before any engine starts.
    assert len(deployments) == ("store" not in asked["model"])
    facts = version_facts(spec.engine.version)
    assert facts is not None
    for deployment in deployments:
        (engine, *_) = deployment["spec"]["template"]["spec"]["containers"]
        assert vllm_flags.check(engine["args"], facts) == ()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_manifest_is_refused_by_the_field_that_its_table_names(name: str) -> None:
    refusals, _ = review_service(body_of(CONVERTED / "refused" / f"{name}.yaml"), Store(KINDS))
    refused = SOURCES[name]["refused"]
    assert refused["instead"].strip()
    assert [
        sentence
        for sentence in refusals
        if sentence.startswith(refused["field"]) and refused["names"] in sentence
    ], refusals
