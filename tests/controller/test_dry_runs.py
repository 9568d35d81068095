"""Whatever a spec says, to judge it takes less time than the API server took to ask."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tables import TABLES, table
from tessera.api.api_resource import ApiResource
from tessera.controller.admission import review_service, validators
from tessera.controller.batch_review import review_batch
from tessera.domain.kinds.kinds import (
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    PRICE_LISTS,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import Ref
from tessera.domain.vllm.facts import version_facts
from tessera.ports import ClusterObject
from tessera.reconcile.store import Store
from tessera.resources.api_resources import CLAIMS, PODS
from tessera.resources.manifest import ObjectKey
from tests.batch_builders import a_batch, a_batch_spec
from tests.builders import NOW, SMALL, a_budget, a_pod, a_provider_spec, a_service, a_spec
from tests.controller.test_admission import a_batch_body, a_body, a_store

MOST = timedelta(milliseconds=25)


def cpu_time(review: Callable[[], object]) -> timedelta:
    """Return the processor time of a review that finds no table filled, the best of five."""
    times = []
    for _ in range(5):
        for name in TABLES:
            if name.startswith("tessera.domain.vllm."):
                table(name).cache_clear()
        began = time.process_time()
        review()
        times.append(time.process_time() - began)
    return timedelta(seconds=min(times))


def _options() -> list[str]:
    facts = version_facts("0.32.0")
    assert facts is not None
    return sorted(facts.options, key=len)


# Words by which parts of a spec decide to look at the flags.
_LOOKED_AT = "--hf-language-cache-limit"


def flags() -> dict[str, list[str]]:
    """Return lists of 64 flags of up to 1,024 characters, by what is wrong with them."""
    longest = _options()[-63:]
    return {
        "nearly right": [_LOOKED_AT, *(f"{each[:8]}x{each[9:]}" for each in longest)],
        "unknown and long": [_LOOKED_AT + "ab-c" * 240] * 64,
        "abbreviated": [_LOOKED_AT, *("--enable" for _ in range(63))],
        "many levels": ["--hf-overrides." + "a." * 480 + "b=1"] * 64,
        "levels": ["--hf-overrides." + "a." * 14 + "b=1"] * 64,
        "nested lists": ["--hf-overrides=" + "[" * 490 + "]" * 490] * 64,
        "nested objects": ["--hf-overrides=" + '{"a":' * 160 + "1" + "}" * 160] * 64,
        "keys": ["--hf-overrides={" + ",".join(f'"k{key}":1' for key in range(99)) + "}"] * 64,
        "digits": [_LOOKED_AT, *(["--max-model-len=" + "9" * 1000] * 63)],
        "values": ["--allowed-origins", *(["x" * 1024] * 63)],
        "graphs": [
            '--compilation-config={"cudagraph_capture_sizes":[' + ",".join(["111"] * 240) + "]}"
        ]
        * 64,
    }


@pytest.mark.parametrize("fault", flags())
def test_flags_of_any_kind_are_judged_in_no_time(fault: str) -> None:
    body = a_body(engine={"extraArgs": flags()[fault]})
    assert cpu_time(lambda: review_service(body, a_store())) <= MOST


def schedules() -> dict[str, list[str]]:
    """Return 16 cron expressions, by what takes time in them."""
    return {
        "days and weekdays": [f"0 0 {day} * {day % 7}" for day in range(1, 17)],
        "last and first ones": [f"{minute} 0 L,LW * 5L,{minute % 7}#1" for minute in range(16)],
        "rare": [f"{minute} 0 29 2 {minute % 7}" for minute in range(16)],
        "lists": [",".join(["1-59"] * 20) + f" {hour} L * *" for hour in range(16)],
        "all at once": ["* * * * *"] * 16,
    }


@pytest.mark.parametrize("kind", schedules())
def test_schedules_of_any_kind_are_judged_in_no_time(kind: str) -> None:
    entries = [{"cron": cron, "timeZone": "Europe/Berlin"} for cron in schedules()[kind]]
    body = a_body(scaling={"schedules": entries})
    assert cpu_time(lambda: review_service(body, a_store())) <= MOST


_LARGE: dict[str, dict[str, Any]] = {
    "a location": {"model": {"uri": "hf://" + "a" * 8192}},
    "folders": {"model": {"uri": "s3://" + "a/" * 250}},
    "an image": {"model": {"uri": "oci://a" + "." * 500 + " "}},
    "domains": {"engine": {"allowedMediaDomains": ["a" + "-" * 250] * 32}},
    "variables": {
        "podTemplate": {"env": [{"name": f"X{each}", "value": "y" * 8192} for each in range(32)]}
    },
    "annotations": {
        "podTemplate": {"annotations": {"a" * 300 + str(each): "b" * 4096 for each in range(32)}}
    },
    "names": {
        "access": {"aliases": [f"n{each}" for each in range(16)], "public": True},
        "model": {
            "uri": SMALL,
            "adapters": [{"name": f"a{each}", "uri": "hf://a/b"} for each in range(16)],
        },
    },
    "unknown fields": {f"field{each}": each for each in range(2000)},
}


@pytest.mark.parametrize("kind", _LARGE)
def test_large_specs_are_judged_in_no_time(kind: str) -> None:
    body = a_body(**_LARGE[kind])
    assert cpu_time(lambda: review_service(body, a_store(), gateways=True)) <= MOST


def a_fleet(count: int) -> Store:
    """Return services, batches and pods of other namespaces, and the claim of the batch."""
    store = a_store("a100")
    claim = VolumeClaim(access_modes=("ReadWriteMany",))
    key = ObjectKey(CLAIMS.plural, "team-a", "data")
    store.put(CLAIMS, ClusterObject(key=key, plan_input=claim))
    for number in range(count):
        ref = Ref(f"team-{number}", f"x{number}")
        service, batch = a_service(ref.name, ref=ref), replace(a_batch(a_batch_spec()), ref=ref)
        for kind, item in (
            (INFERENCE_SERVICES, service),
            (BATCH_INFERENCES, batch),
            (PODS, a_pod(ref.name, ref.name, address="10.0.0.1")),
        ):
            key = ObjectKey(kind.plural, ref.namespace, ref.name)
            store.put(kind, ClusterObject(key=key, plan_input=item))
    return store


@pytest.mark.parametrize("fault", [{}, {"service": "away"}, {"model": {"uri": "hf://acme/own"}}])
def test_a_batch_costs_as_little_in_a_large_fleet(fault: dict[str, Any]) -> None:
    stores = [a_fleet(count) for count in (10, 3000)]
    body = a_batch_body(**fault)
    small, large = (cpu_time(partial(review_batch, body, store, NOW)) for store in stores)
    assert large < small + timedelta(milliseconds=5)


NAMES = [f"n{number}" for number in range(17)]


def services_with_names(count: int) -> Store:
    """Return as many services of as many tenants with all of these names, and their budgets."""
    store = a_store("a100")
    for number in range(count):
        ref = Ref(f"team-{number}", f"x{number}")
        spec = a_spec(
            model={"uri": SMALL, "servedName": NAMES[0]},
            access={"aliases": NAMES[1:], "public": True},
        )
        service = a_service(ref.name, spec, ref=ref, uid=f"uid-{number}")
        key = ObjectKey(INFERENCE_SERVICES.plural, ref.namespace, ref.name)
        store.put(INFERENCE_SERVICES, ClusterObject(key=key, plan_input=service))
    for number in range(min(count, 100)):
        budget = a_budget(f"team-{number}")
        key = ObjectKey(TENANT_BUDGETS.plural, "", budget.name)
        store.put(TENANT_BUDGETS, ClusterObject(key=key, plan_input=budget))
    return store


def test_names_that_thousands_of_services_list_are_judged_in_no_time() -> None:
    store = services_with_names(3000)

    def body_with(names: list[str]) -> dict[str, Any]:
        model = {"uri": SMALL, "servedName": names[0]}
        return a_body(model=model, access={"aliases": names[1:], "public": True})

    same, other = body_with(NAMES), body_with([f"other-{name}" for name in NAMES])
    took, without = (
        cpu_time(partial(review_service, body, store, gateways=True)) for body in (same, other)
    )
    assert took <= without + MOST
    assert any("spec.model.servedName: n0" in each for each in _warnings_of(same, store))


def test_a_name_of_many_services_is_taken_by_the_oldest() -> None:
    store = services_with_names(200)
    older = a_service(
        "older",
        a_spec(access={"aliases": ["n7"]}),
        ref=Ref("team-a", "older"),
        created=NOW - timedelta(days=400),
    )
    for kind, item in ((INFERENCE_SERVICES, older), (TENANT_BUDGETS, a_budget("team-a"))):
        namespace = "team-a" if kind is INFERENCE_SERVICES else ""
        name = older.ref.name if kind is INFERENCE_SERVICES else "team-a"
        key = ObjectKey(kind.plural, namespace, name)
        store.put(kind, ClusterObject(key=key, plan_input=item))
    warnings = _warnings_of(a_body(access={"aliases": ["n7"]}), store)
    assert any("n7 is also a name of InferenceService/team-a/older" in each for each in warnings)


def _warnings_of(body: dict[str, Any], store: Store) -> list[str]:
    return review_service(body, store, gateways=True)[1]


_TARGET = {"provider": {"name": "acme", "model": "big"}}
LARGEST: dict[ApiResource, dict[str, Any]] = {
    QUALITY_GATES: {
        "suite": {
            "claim": {"claimName": "data", "path": "a" * 200},
            "prompts": {f"s{number}": 9 for number in range(16)},
        },
        "judge": {"service": "judge"},
    },
    MODEL_ROUTES: {"targets": [{"name": f"t{number}", **_TARGET} for number in range(8)]},
    MODEL_PROVIDERS: {**a_provider_spec(), "tenants": [f"t{number}" for number in range(64)]},
    PRICE_LISTS: {
        "entries": [
            {
                "from": "2026-01-01",
                "models": [f"m{number}-{model}" for model in range(32)],
                "tenants": [f"t{number}-{tenant}" for tenant in range(32)],
                "input": "1",
                "output": "2",
            }
            for number in range(64)
        ]
    },
}


@pytest.mark.parametrize("kind", LARGEST, ids=lambda kind: kind.kind)
def test_the_largest_object_of_a_kind_is_judged_in_no_time(kind: ApiResource) -> None:
    store = services_with_names(3000)
    body = {"metadata": {"name": "x", "namespace": "team-a"}, "spec": LARGEST[kind]}
    validate = validators(store, lambda: NOW)[kind.plural]
    warnings = list[str]()

    def review() -> None:
        warnings.clear()
        asyncio.run(validate(body=body, warnings=warnings))

    assert cpu_time(review) <= timedelta(milliseconds=15)
    assert warnings
