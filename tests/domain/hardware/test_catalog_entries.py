"""Entries that an installation adds to the catalog."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.pool_reasons import Discovered
from tessera.api.ref import Ref
from tessera.domain.hardware.catalog_entries import extended_catalog
from tessera.domain.hardware.gpu_catalog import catalog, models, products, shipped
from tessera.domain.placement.checks import unknown_model_denial
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.sizing.prices import parse_prices
from tests.builders import SMALL, a_node, a_pool, a_service, a_snapshot, a_spec, plan_of
from tests.catalogs import A5000, ADA, OWN

pytestmark = pytest.mark.usefixtures("shipped_catalog")


def document(gpus: Any = (), models: Any = ()) -> str:
    return json.dumps({"gpus": list(gpus), "models": list(models)})


def faults(gpus: Any = (), models: Any = ()) -> tuple[str, ...]:
    return extended_catalog(document(gpus, models))[1]


def install(gpus: Any = (), models: Any = ()) -> None:
    extended, left_out = extended_catalog(document(gpus, models))
    assert left_out == ()
    catalog.set(extended)


def test_entries_are_known_beside_the_shipped_ones() -> None:
    before = len(products()), len(models())
    install([A5000, ADA], [OWN])
    assert (len(products()), len(models())) == (before[0] + 2, before[1] + 1)
    assert products()["NVIDIA-RTX-A5000"].memory_mib == 24_564
    assert models()["acme/llama-8b-ft"].layers == 32


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (A5000 | {"product": "NVIDIA-A10G"}, "NVIDIA-A10G is shipped with Tessera, and that entry"),
        (A5000 | {"product": "NVIDIA-A10G-SHARED"}, "turn time slicing or MPS off in the device"),
        (A5000 | {"product": ""}, "product: String should have at least 1 character"),
        (A5000 | {"product": "N" * 64}, "product: String should have at most 63 characters"),
        (A5000 | {"capability": "8"}, "capability: String should match pattern"),
        (A5000 | {"memoryMiB": 24}, "memoryMiB: Input should be greater than or equal to 1024"),
        (A5000 | {"memoryMiB": "24 GB"}, "memoryMiB: Input should be a valid integer"),
        (A5000 | {"bandwidthGBs": 0}, "bandwidthGBs: Input should be greater than 0"),
        (A5000 | {"bandwidthGBs": 1e300}, "bandwidthGBs: Input should be less than or equal to"),
        (A5000 | {"multiprocessors": 0}, "multiprocessors: Input should be greater than or equal"),
        (A5000 | {"bf16Tflops": -1}, "bf16Tflops: Input should be greater than 0"),
        (A5000 | {"fp8Tflops": 222}, "remove fp8Tflops, which needs compute capability 8.9"),
        (without(ADA, "fp8Tflops"), "add fp8Tflops, which compute capability 8.9 has"),
        (without(A5000, "bandwidthGBs"), "bandwidthGBs: Field required"),
        (A5000 | {"colour": "green"}, "colour: Extra inputs are not permitted"),
        (None, "the entry: Input should be"),
        ("NVIDIA-RTX-A5000", "the entry: Input should be"),
    ],
)
def test_a_bad_gpu_is_left_out_with_a_sentence_and_the_others_stay(gpu: Any, says: str) -> None:
    extended, (sentence,) = extended_catalog(document([gpu, ADA], [OWN]))
    assert sentence.startswith("catalogs.gpus[0] is left out: ")
    assert says in sentence
    assert set(extended.products) - set(products()) == {ADA["product"]}
    assert set(extended.models) - set(models()) == {OWN["model"]}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (OWN | {"model": SMALL.removeprefix("hf://")}, "is shipped with Tessera"),
        (OWN | {"model": "two words"}, "model: String should match pattern"),
        (OWN | {"layers": 0}, "layers: Input should be greater than or equal to 1"),
        (OWN | {"activeParameters": 9_000_000_000}, "activeParameters 9000000000 exceed"),
        (without(OWN, "headDim"), "headDim: Field required"),
    ],
)
def test_a_bad_model_is_left_out_with_a_sentence(model: Any, says: str) -> None:
    (sentence,) = faults(models=[model])
    assert sentence.startswith("catalogs.models[0] is left out: ")
    assert says in sentence


def test_the_first_of_two_entries_with_one_name_stays() -> None:
    extended, (sentence,) = extended_catalog(document([A5000, A5000 | {"memoryMiB": 9999}]))
    assert "catalogs.gpus[1] is left out: NVIDIA-RTX-A5000 is there twice" in sentence
    assert extended.products["NVIDIA-RTX-A5000"].memory_mib == 24_564


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpus:", "catalogs is not JSON"),
        ("[" * 100_000, "catalogs is not JSON"),
        ("[]", "catalogs is no object"),
        ('{"gpus": {}}', "catalogs.gpus is no list"),
        ('{"cpus": []}', "catalogs.cpus is no list of gpus or models"),
    ],
)
def test_a_document_that_cannot_be_read_changes_nothing(text: str, says: str) -> None:
    extended, (sentence,) = extended_catalog(text)
    assert says in sentence
    assert 'write {"gpus": [' in sentence
    assert extended == shipped()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@given(
    st.lists(
        st.sampled_from([A5000, ADA, OWN]).flatmap(
            lambda entry: st.dictionaries(
                st.sampled_from(sorted(entry)), json_values, max_size=2
            ).map(lambda changes: entry | changes)
        ),
        max_size=4,
    )
)
def test_no_entry_whatever_it_is_takes_away_or_changes_a_shipped_one(entries: list[Any]) -> None:
    extended, left_out = extended_catalog(json.dumps({"gpus": entries, "models": entries}))
    base = shipped()
    assert {name: extended.products[name] for name in base.products} == base.products
    assert {name: extended.models[name] for name in base.models} == base.models
    added = len(extended.products) + len(extended.models) - len(base.products) - len(base.models)
    assert added + len(left_out) == 2 * len(entries)


def planned(product: str, spec: InferenceServiceSpec) -> tuple[Discovered, ServicePlan]:
    """Return what a pool of whole GPUs without MIG discovers, and the plan of its service."""
    plan = plan_of(
        a_snapshot(
            a_service(spec=spec),
            pools=(a_pool("workstations", "0.40"),),
            nodes=(a_node("workstations", whole=2, product=product),),
        )
    )
    (view,) = plan.pools
    return Discovered(view.discovered.reason), plan.service_plans[Ref("team-a", "chat")]


@pytest.mark.parametrize(
    "product", ["NVIDIA-A10G", "NVIDIA-GeForce-RTX-4090", A5000["product"], ADA["product"]]
)
def test_a_pool_of_gpus_without_mig_serves_by_whole_gpus(product: str) -> None:
    install([A5000, ADA])
    discovered, service_plan = planned(product, a_spec(SMALL, replicas=1))
    assert discovered is Discovered.DEVICES_FOUND
    choice = service_plan.placement.choice
    assert choice is not None
    hardware = choice.fit.hardware
    assert (hardware.product, hardware.devices, hardware.name) == (product, 1, "whole GPU")


def test_a_gpu_that_is_in_no_catalog_is_named_with_how_to_add_it() -> None:
    plan = plan_of(
        a_snapshot(
            a_service(),
            pools=(a_pool("workstations"),),
            nodes=(a_node("workstations", whole=2, product="NVIDIA-RTX-A5000"),),
        )
    )
    (view,) = plan.pools
    assert view.discovered.reason == Discovered.UNKNOWN_PRODUCT
    assert "catalogs.gpus" in view.discovered.message


def test_a_model_of_the_installation_needs_no_shape_in_its_services() -> None:
    spec = a_spec("hf://acme/llama-8b-ft", replicas=1)
    assert unknown_model_denial(spec) is not None
    install(models=[OWN])
    assert unknown_model_denial(spec) is None
    _, service_plan = planned("NVIDIA-A10G", spec)
    assert service_plan.placement.choice is not None


def test_prices_may_name_a_gpu_of_the_installation() -> None:
    entry = {"product": "NVIDIA-RTX-A5000", "from": "2026-01-01", "perGPUHour": "0.40"}
    install([A5000])
    (price,) = parse_prices(json.dumps({"prices": [entry]}))
    assert price.product == "NVIDIA-RTX-A5000"
