"""Admission refuses what only an edit can fix, and warns of the rest."""

import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import kopf
import pytest

from tessera.api.api_resource import ApiResource
from tessera.api.pool_reasons import PoolAccepted
from tessera.api.reasons import StatusVerdict
from tessera.api.service_class import ServiceClasses
from tessera.api.service_status import InferenceServiceStatus
from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.controller.admission import (
    MOST_TEXT,
    review_budget,
    review_pool,
    review_service,
    validators,
)
from tessera.controller.batch_review import review_batch
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    PRICE_LISTS,
    QUALITY_GATES,
    TENANT_BUDGETS,
    USER_KINDS,
)
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import Budget, Node, Pool, Ref
from tessera.domain.status.conditions import with_accepted
from tessera.ports import ClusterObject
from tessera.reconcile.store import Store
from tessera.resources.api_resources import CLAIMS, KINDS, NODES
from tessera.resources.manifest import ObjectKey
from tests.batch_builders import a_batch, a_batch_spec
from tests.builders import (
    A100,
    NOW,
    SMALL,
    a_budget,
    a_node,
    a_pool,
    a_provider_spec,
    a_service,
    a_spec,
)

CHART = Path(__file__).parents[2] / "charts" / "tessera"


def a_body(**spec: Any) -> dict[str, Any]:
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat"}
    return {"metadata": meta, "spec": {"model": {"uri": SMALL}, **spec}}


def a_store(*pools: str) -> Store:
    store = Store(KINDS)
    for name in pools:
        store.put(ACCELERATOR_POOLS, ClusterObject(key=ObjectKey("acceleratorpools", "", name)))
    return store


def put_plan_input(store: Store, kind: ApiResource, namespace: str, item: Any) -> None:
    name = item.name if isinstance(item, Budget) else item.ref.name
    key = ObjectKey(kind.plural, namespace, name)
    store.put(kind, ClusterObject(key=key, plan_input=item))


def test_a_good_manifest_passes_in_silence() -> None:
    assert review_service(a_body(), a_store()) == ([], [])


def test_a_name_of_another_service_is_a_warning_for_both() -> None:
    store = a_store()
    put_plan_input(store, TENANT_BUDGETS, "", a_budget())
    older = a_service("older", a_spec(access={"aliases": ["default"]}), created=NOW)
    put_plan_input(store, INFERENCE_SERVICES, "team-a", older)
    body = a_body(access={"aliases": ["one", "default"]})
    refusals, warnings = review_service(body, store, gateways=True)
    assert (refusals, warnings) == (
        [],
        [
            "spec.access.aliases[1]: default is also a name of InferenceService/team-a/older, "
            "which gets the requests of TenantBudget/team-a at the gateway; remove it from one of "
            "the two"
        ],
    )
    body["metadata"]["creationTimestamp"] = f"{NOW - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    (warning,) = review_service(body, store, gateways=True)[1]
    assert "InferenceService/team-a/older, which does not get the requests" in warning
    assert review_service(body, store) == ([], []), "without a gateway nobody uses names"


def test_a_name_without_a_grant_is_a_warning() -> None:
    store = a_store()
    put_plan_input(store, TENANT_BUDGETS, "", a_budget())
    put_plan_input(store, TENANT_BUDGETS, "", a_budget("team-b"))
    body = a_body(access={"public": True})
    refusals, (warning,) = review_service(body, store, gateways=True)
    assert not refusals
    assert "cannot be used by other tenants, since no grant in spec.publishing of " in warning


def test_names_of_services_that_share_none_cost_an_admission_little() -> None:
    """Reviews block the operator, and anyone who edits a service may ask for many."""
    store = a_store()
    for number in range(100):
        grant = {"names": [f"name-{number}-3"], "public": True}
        put_plan_input(store, TENANT_BUDGETS, "", a_budget(f"team-{number}", publishing=[grant]))
    for number in range(1000):
        names = [f"name-{number}-{alias}" for alias in range(16)]
        ref = Ref(f"team-{number % 100}", f"x{number}")
        service = a_service(ref.name, a_spec(access={"aliases": names, "public": True}), ref=ref)
        put_plan_input(store, INFERENCE_SERVICES, ref.namespace, service)
    body = a_body(access={"aliases": ["name-7-3"], "public": True})
    began = time.process_time()
    _, warnings = review_service(body, store, gateways=True)
    took = time.process_time() - began
    assert "name-7-3 is taken" in warnings[0]
    # It takes 6 ms; a look at the names of all took 50 times as much.
    assert took < 0.15


def test_several_faults_are_reported_at_once() -> None:
    body = a_body(
        context={"maxModelLen": 10**6}, engine={"extraArgs": ["--port=1", "--max-logprobs=x"]}
    )
    refusals, warnings = review_service(body, a_store())
    assert [refusal.partition(":")[0] for refusal in refusals] == [
        "spec.context.maxModelLen",
        "spec.engine.extraArgs",
        "spec.engine.extraArgs",
    ]
    assert warnings == []


def test_a_pool_that_is_still_to_come_is_a_warning() -> None:
    body = a_body(placement={"pools": ["a100", "b200"]})
    refusals, warnings = review_service(body, a_store("a100"))
    assert refusals == []
    assert warnings == [
        "spec.placement.pools[1]: AcceleratorPool/b200 not found; kubectl get acceleratorpools "
        "lists 1"
    ]


def test_flags_of_an_unknown_engine_version_are_a_warning() -> None:
    body = a_body(engine={"version": "0.99.0", "extraArgs": ["--anything"]})
    refusals, warnings = review_service(body, a_store())
    assert refusals == []
    assert "0.99.0" in warnings[0]


def test_an_engine_older_than_all_that_are_known_is_a_warning() -> None:
    refusals, warnings = review_service(a_body(engine={"version": "0.9.2"}), a_store())
    assert refusals == []
    assert "vLLM 0.9.2 is older than 0.30.0" in warnings[0]


def test_what_the_schema_would_refuse_is_refused_here_too() -> None:
    refusals, _ = review_service(a_body(scaling={"minReplicas": "many"}), a_store())
    assert "spec.scaling.minReplicas" in refusals[0]


def test_what_is_unwise_is_a_warning() -> None:
    refusals, warnings = review_service(a_body(replicas=1), a_store())
    assert refusals == []
    assert warnings[0].startswith("spec.replicas: with 1 replica")


def a_budget_body(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "team-a", "uid": "uid-budget"},
        "spec": {
            "owner": "anna@example.org",
            "tenant": {"namespaces": ["team-a"]},
            "limits": [{"window": "Day", "amount": "10"}],
            **spec,
        },
    }


def test_a_budget_in_an_unknown_time_zone_is_refused() -> None:
    refusals, _ = review_budget(a_budget_body(timeZone="Europe/Atlantis"), a_store())
    assert refusals[0].startswith("spec.timeZone: Europe/Atlantis")


def test_a_second_budget_for_a_namespace_is_a_warning() -> None:
    store = a_store()
    other = a_budget("first", tenant={"namespaces": ["team-a"]})
    store.put(
        TENANT_BUDGETS, ClusterObject(key=ObjectKey("tenantbudgets", "", "first"), plan_input=other)
    )
    refusals, warnings = review_budget(a_budget_body(), store)
    assert refusals == []
    assert warnings[0].startswith(
        "spec.tenant.namespaces[0]: team-a belongs to TenantBudget/first, which keeps it"
    )


def put(store: Store, kind: ApiResource, *values: Budget | Pool | Node) -> Store:
    for value in values:
        key = ObjectKey(kind.plural, "", value.name)
        store.put(kind, ClusterObject(key=key, plan_input=value))
    return store


def test_the_currency_of_a_budget_that_spent_is_refused() -> None:
    body = a_budget_body(currency="EUR")
    window = {
        "window": "Day",
        "start": "2026-11-20T00:00:00Z",
        "end": "2026-11-21T00:00:00Z",
        **dict.fromkeys(("limit", "spent", "committed", "forecast", "maxOverspend"), "1"),
    }
    body["status"] = {
        "acceptedSpec": a_budget_body()["spec"],
        "spend": {"asOf": "2026-11-20T12:00:00Z", "windows": [window]},
    }
    refusals, _ = review_budget(body, a_store())
    assert refusals[0].startswith("spec.currency: EUR cannot replace USD")


def test_a_budget_in_a_currency_that_no_pool_has_is_a_warning() -> None:
    store = put(a_store(), ACCELERATOR_POOLS, a_pool())
    assert review_budget(a_budget_body(), store) == ([], [])
    _, (warning,) = review_budget(a_budget_body(currency="EUR"), store)
    assert warning.startswith("spec.currency: no AcceleratorPool is priced in EUR but in USD")


NODES_OF_TEMPLATE = {"gpus": 1, "maxNodes": 2}


def a_pool_body(name: str = "a-new", **spec: Any) -> dict[str, Any]:
    prices = [{"from": "2026-01-01", "perGPUHour": "2"}]
    body = {"nodeSelector": {"pool": "a100"}, "prices": prices, **spec}
    return {"metadata": {"name": name}, "spec": body}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "matches only nodes of other pools (a100-0 of AcceleratorPool/a100)"),
        (
            {"prices": [{"from": "2026-01-01", "perGPUHour": "0"}], "nodeSelector": {"p": "new"}},
            "spec.prices[0].perGPUHour: 0 makes what runs there free",
        ),
        (
            {"prices": [{"from": "2099-01-01", "perGPUHour": "1"}]},
            "spec.prices begins on 2099-01-01",
        ),
        (
            {
                "nodeSelector": {"p": "new"},
                "mig": {"mode": "Static", "layout": {"1g.10gb": 7, "3g.40gb": 2}},
            },
            "spec.mig.layout: 7x 1g.10gb, 2x 3g.40gb do not fit on 1 GPU of any known product",
        ),
        (
            {
                "nodeSelector": {"p": "new"},
                "prices": [{"from": "2026-01-01", "perGPUHour": "2", "currency": "EUR"}],
            },
            "spec.prices: no TenantBudget is in EUR but in USD",
        ),
        (
            {
                "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
                "nodeTemplate": {"product": "NVIDIA-L4", **NODES_OF_TEMPLATE},
            },
            "spec.nodeSelector: nodes get nvidia.com/gpu.product after they started",
        ),
        (
            {"nodeSelector": {"p": "new"}, "nodeTemplate": {"product": "L4", **NODES_OF_TEMPLATE}},
            "spec.nodeTemplate.product: L4 is none of the",
        ),
    ],
)
def test_what_is_unwise_in_a_pool_is_a_warning(spec: dict[str, Any], says: str) -> None:
    store = put(a_store(), ACCELERATOR_POOLS, replace(a_pool(), created=NOW))
    put(store, NODES, a_node(slices={"1g.10gb": 7}))
    put(store, TENANT_BUDGETS, a_budget())
    refusals, warnings = review_pool(a_pool_body(**spec), store, NOW)
    assert refusals == []
    assert says in warnings[0]


def test_an_older_pool_that_takes_nodes_over_is_a_warning() -> None:
    old = replace(a_pool("old"), created=NOW)
    store = put(a_store(), ACCELERATOR_POOLS, old, a_pool())
    put(store, NODES, a_node(slices={"1g.10gb": 7}))
    body = a_pool_body("old")
    body["metadata"]["creationTimestamp"] = NOW.isoformat()
    _, (warning,) = review_pool(body, store, NOW)
    assert "takes 1 node from AcceleratorPool/a100, which is newer" in warning


def test_deleting_a_pool_in_use_is_a_warning() -> None:
    variant = {
        "name": "a100-1g-10gb",
        "pool": "a100",
        "product": A100,
        "gpus": 1,
        "precision": "bf16",
        "maxModelLen": 1,
        "maxNumSeqs": 1,
        "maxNumBatchedTokens": 1,
        "kvCacheTokens": 1,
        "tokensPerSecond": 1,
        "source": "Table",
    }
    status = InferenceServiceStatus.model_validate({"variant": variant}, extra="ignore")
    store = put(a_store(), ACCELERATOR_POOLS, a_pool())
    assert review_pool(a_pool_body("a100"), store, NOW, deleted=True) == ([], [])
    service = a_service(status=status)
    key = ObjectKey("inferenceservices", "team-a", "chat")
    store.put(INFERENCE_SERVICES, ClusterObject(key=key, plan_input=service))
    _, (warning,) = review_pool(a_pool_body("a100"), store, NOW, deleted=True)
    assert warning.startswith("1 service and 0 batches run in AcceleratorPool/a100")


def test_deleting_a_budget_in_use_warns_of_what_loses_its_limit() -> None:
    store = put(a_store(), TENANT_BUDGETS, a_budget())
    assert review_budget(a_budget_body(), store, deleted=True) == ([], [])
    store.put(
        INFERENCE_SERVICES, ClusterObject(key=ObjectKey("inferenceservices", "team-a", "chat"))
    )
    refusals, warnings = review_budget(a_budget_body(), store, deleted=True)
    assert refusals == []
    assert warnings[0].startswith("1 service and 0 batches in team-a")


def test_deleting_a_budget_whose_namespaces_another_keeps_warns_of_nothing() -> None:
    """The other budget limits them: nothing loses its limit with the one that overlaps."""
    other = a_budget("team-b", tenant={"namespaces": ["team-a"]})
    store = put(a_store(), TENANT_BUDGETS, a_budget(), other)
    store.put(
        INFERENCE_SERVICES, ClusterObject(key=ObjectKey("inferenceservices", "team-a", "chat"))
    )
    body = a_budget_body() | {"metadata": {"name": "team-b"}}
    assert review_budget(body, store, deleted=True) == ([], [])


def test_an_interactive_service_on_spot_is_refused() -> None:
    store = a_store()
    pool = a_pool("a100-spot", tier="Spot")
    store.put(
        ACCELERATOR_POOLS,
        ClusterObject(key=ObjectKey("acceleratorpools", "", pool.name), plan_input=pool),
    )
    refusals, _ = review_service(a_body(placement={"pools": ["a100-spot"]}), store)
    assert refusals[0].startswith("spec.placement.pools[0]: AcceleratorPool/a100-spot is of tier")
    assert (
        review_service(a_body(placement={"pools": ["a100-spot"]}, **{"class": "Batch"}), store)[0]
        == []
    )


def test_the_tier_spot_is_refused_for_an_interactive_service_only() -> None:
    placement = {"placement": {"tiers": ["OnDemand", "Spot"]}}
    refusals, _ = review_service(a_body(**placement), a_store())
    assert refusals[0].startswith("spec.placement.tiers: the nodes of tier Spot")
    assert review_service(a_body(**placement, **{"class": "Standard"}), a_store())[0] == []


def test_warnings_know_the_classes_of_the_installation() -> None:
    classes = ServiceClasses.model_validate({"Interactive": {"minReplicas": 1}})
    assert not review_service(a_body(), a_store())[1]
    (warning,) = review_service(a_body(), a_store(), classes)[1]
    assert warning.startswith("spec.scaling.minReplicas: with 1 replica")


def a_batch_body(**spec: Any) -> dict[str, Any]:
    defaults = {"claimName": "data", "input": "in.jsonl", "output": "out.jsonl"}
    return {
        "metadata": {"name": "night", "namespace": "team-a"},
        "spec": defaults | ({} if "service" in spec else {"model": {"uri": SMALL}}) | spec,
    }


def test_a_batch_whose_claim_is_still_to_come_is_a_warning() -> None:
    refusals, warnings = review_batch(a_batch_body(), a_store(), NOW)
    assert refusals == []
    assert warnings[0].startswith("spec.claimName: PersistentVolumeClaim/data does not exist")


def test_a_file_that_another_batch_writes_is_refused_at_creation_only() -> None:
    store = a_store("a100")
    claim = VolumeClaim(access_modes=("ReadWriteMany",))
    key = ObjectKey("persistentvolumeclaims", "team-a", "data")
    store.put(CLAIMS, ClusterObject(key=key, plan_input=claim))
    older = replace(
        a_batch(a_batch_spec(claimName="data", output="out.jsonl")), ref=Ref("team-a", "evening")
    )
    key = ObjectKey("batchinferences", "team-a", "evening")
    store.put(BATCH_INFERENCES, ClusterObject(key=key, plan_input=older))
    later = NOW + timedelta(seconds=1)
    refusals, _ = review_batch(a_batch_body(), store, later)
    assert "BatchInference/evening came first" in refusals[0]
    assert review_batch(a_batch_body(), store, later, created=False) == ([], refusals)
    assert review_batch(a_batch_body(output="other.jsonl"), store, later) == ([], [])


def test_a_model_that_has_to_be_read_is_a_warning() -> None:
    refusals, warnings = review_service(a_body(model={"uri": "hf://acme/own"}), a_store())
    assert refusals == []
    assert "hf://acme/own is not among the" in warnings[0]
    assert "wait until a Job has read it" in warnings[0]


def test_a_batch_whose_model_has_to_be_read_is_warned() -> None:
    store = a_store("a100")
    claim = VolumeClaim(access_modes=("ReadWriteMany",))
    key = ObjectKey("persistentvolumeclaims", "team-a", "data")
    store.put(CLAIMS, ClusterObject(key=key, plan_input=claim))
    body = a_batch_body(model={"uri": "hf://acme/own"})
    for created in (True, False):
        refusals, warnings = review_batch(body, store, NOW, created=created)
        assert refusals == []
        assert "spec.model.shape" in warnings[0]
        assert "config.json" in warnings[0]


SHAPE = {
    "parameters": 8_000_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 2,
    "headDim": 32,
    "maxPositionEmbeddings": 2048,
}


def a_batch_of_a_service(status: InferenceServiceStatus) -> tuple[list[str], list[str]]:
    """Review a batch that uses a service with an unknown model."""
    store = a_store()
    own = a_spec("hf://acme/own", context={"maxModelLen": 1024})
    service = a_service(spec=own, status=status)
    key = ObjectKey("inferenceservices", "team-a", "chat")
    store.put(INFERENCE_SERVICES, ClusterObject(key=key, plan_input=service))
    claim = VolumeClaim(access_modes=("ReadWriteMany",))
    key = ObjectKey("persistentvolumeclaims", "team-a", "data")
    store.put(CLAIMS, ClusterObject(key=key, plan_input=claim))
    spec = {"claimName": "data", "input": "in.jsonl", "output": "out.jsonl", "service": "chat"}
    body = {"metadata": {"name": "night", "namespace": "team-a"}, "spec": spec}
    return review_batch(body, store, NOW)


def test_a_batch_may_use_a_service_whose_model_was_read() -> None:
    model = {"uri": "hf://acme/own", "shape": SHAPE}
    status = InferenceServiceStatus.model_validate({"model": model})
    assert a_batch_of_a_service(status) == ([], [])


def test_a_batch_of_a_service_whose_model_is_still_read_is_warned() -> None:
    refusals, warnings = a_batch_of_a_service(InferenceServiceStatus())
    assert refusals == []
    assert "InferenceService/chat: spec.model.shape" in warnings[0]


def test_a_batch_with_a_flag_that_is_reserved_is_refused() -> None:
    body = a_batch_body(engine={"extraArgs": ["--port=1"]})
    store = a_store()
    claim = VolumeClaim(access_modes=("ReadWriteMany",))
    store.put(
        CLAIMS,
        ClusterObject(key=ObjectKey("persistentvolumeclaims", "team-a", "data"), plan_input=claim),
    )
    refusals, _ = review_batch(body, store, NOW)
    assert "spec.engine.extraArgs" in refusals[0]
    assert review_batch(a_batch_body(), store, NOW) == ([], [])
    body = a_batch_body() | {"spec": a_batch_body()["spec"] | {"engine": {"version": "0.9.2"}}}
    refusals, warnings = review_batch(body, store, NOW)
    assert (refusals, len(warnings)) == ([], 1)
    assert "vLLM 0.9.2 is older" in warnings[0]


async def test_a_refusal_is_plain_and_short_whatever_the_spec_says() -> None:
    validate = validators(a_store(), lambda: NOW)["inferenceservices"]
    hostile = "--\x1b[2J\u202e" + "x" * 1000
    for spec in (
        {"engine": {"extraArgs": [hostile] * 64}},
        {"podTemplate": {"annotations": {"k" * 90_000 + str(each): "v" for each in range(32)}}},
    ):
        with pytest.raises(kopf.AdmissionError) as refused:
            await validate(body=a_body(**spec), warnings=[])
        text = str(refused.value)
        assert text.isprintable()
        assert len(text) <= MOST_TEXT


async def test_in_an_unwatched_namespace_nothing_is_reviewed_and_a_warning_says_so() -> None:
    bad = a_body(engine={"extraArgs": ["--port=1"]})
    warnings: list[str] = []
    elsewhere = validators(a_store(), lambda: NOW, ("team-b", "team-c"))["inferenceservices"]
    await elsewhere(body=bad, warnings=warnings)
    assert warnings == [
        "metadata.namespace: Tessera does not watch team-a; it watches 2 namespaces: team-b, team-c"
    ]
    watched = validators(a_store(), lambda: NOW, ("team-a",))["inferenceservices"]
    with pytest.raises(kopf.AdmissionError, match="remove --port"):
        await watched(body=bad, warnings=warnings)


def a_store_of(*pools: Pool) -> Store:
    store = Store(KINDS)
    for pool in pools:
        key = ObjectKey("acceleratorpools", "", pool.name)
        store.put(ACCELERATOR_POOLS, ClusterObject(key=key, plan_input=pool))
    return store


def test_pools_that_take_no_replica_are_warnings() -> None:
    overlapping = StatusVerdict(PoolAccepted.OVERLAPPING, "every node belongs to another")
    reserved = a_pool("reserved")
    conditions = with_accepted(reserved, overlapping.reason, overlapping.message, NOW)
    status = reserved.status.model_copy(update=conditions)
    store = a_store_of(
        replace(reserved, status=status),
        a_pool("burst", tier="OnDemand"),
        a_pool("spot", tier="Spot"),
    )
    body = a_body(**{"class": "Standard"}, placement={"pools": ["reserved", "burst", "spot"]})
    refusals, warnings = review_service(body, store)
    assert refusals == []
    assert warnings == [
        "spec.placement.pools[0]: AcceleratorPool/reserved is not accepted (Overlapping): every "
        "node belongs to another",
        "spec.placement.pools[2]: AcceleratorPool/spot is of tier Spot, which spec.placement.tiers "
        "does not list, so it takes no replica; add the tier, or remove the pool",
    ]
    assert review_service(a_body(placement={"pools": ["burst"]}), store) == ([], [])


def test_pools_in_several_currencies_are_a_warning() -> None:
    prices = [{"from": date(2026, 1, 1), "perGPUHour": "1.00", "currency": "EUR"}]
    euro = a_pool("euro", prices=prices)
    store = a_store_of(euro, a_pool("dollar"))
    for placement in ({}, {"pools": ["euro", "dollar"]}):
        (warning,) = review_service(a_body(placement=placement), store)[1]
        assert "have prices in EUR, USD, which cannot be compared" in warning
    assert review_service(a_body(placement={"pools": ["euro"]}), store) == ([], [])


def test_a_pool_in_a_currency_that_no_other_pool_has_is_a_warning() -> None:
    price = {"from": "2026-01-01", "perGPUHour": "1.00"}
    for currency, expected in (("EUR", 1), ("USD", 0)):
        spec = {"nodeSelector": {"pool": "b"}, "tier": "OnDemand"}
        body = {
            "metadata": {"name": "b"},
            "spec": spec | {"prices": [price | {"currency": currency}]},
        }
        warnings = [
            warning
            for warning in review_pool(body, a_store_of(a_pool("a")), NOW)[1]
            if warning.startswith("spec.prices: other AcceleratorPools are priced in USD")
        ]
        assert len(warnings) == expected


async def test_an_edit_is_refused_for_pod_keys_only_if_it_changes_them() -> None:
    validate = validators(a_store(), lambda: NOW)["inferenceservices"]
    role = {"annotations": {"iam.amazonaws.com/role": "reader"}}
    old = a_body(podTemplate=role)
    scaled = a_body(podTemplate={**role, "labels": {"team": "b"}}, replicas=3)
    warnings: list[str] = []
    await validate(body=scaled, warnings=warnings, old=old, operation="UPDATE")
    (warning, *_) = warnings
    assert warning.startswith("spec.podTemplate.annotations: iam.amazonaws.com/role may give pods")
    assert "What runs with it goes on" in warning
    for edited, before in (
        (a_body(podTemplate={"annotations": {"iam.amazonaws.com/role": "admin"}}), old),
        (scaled, a_body()),
        (scaled, None),
    ):
        with pytest.raises(kopf.AdmissionError, match=r"iam\.amazonaws\.com/role may give pods"):
            await validate(body=edited, warnings=[], old=before, operation="UPDATE")


async def test_an_edit_is_refused_for_flags_only_if_it_changes_them() -> None:
    validate = validators(a_store(), lambda: NOW)["inferenceservices"]
    old = a_body(engine={"extraArgs": ["--stream-interval=4"]})
    scaled = a_body(engine={"extraArgs": ["--stream-interval=4"]}, replicas=3)
    warnings: list[str] = []
    await validate(body=scaled, warnings=warnings, old=old, operation="UPDATE")
    (warning, *_) = warnings
    assert warning.startswith("spec.engine.extraArgs: --stream-interval sends several tokens")
    assert "What runs with it goes on" in warning
    for edited, before in (
        (a_body(engine={"extraArgs": ["--stream-interval=5"]}), old),
        (scaled, a_body()),
        (scaled, None),
    ):
        with pytest.raises(kopf.AdmissionError, match="extraArgs: --stream-interval sends"):
            await validate(body=edited, warnings=[], old=before, operation="UPDATE")


def test_a_budget_that_admits_no_new_service_refuses_one_and_no_edit() -> None:
    limit = {
        **{"name": "cost-month", "basis": "Cost", "limit": "100", "spent": "96", "reached": 95},
        **{"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
        "actions": ["CapScaleUp", "NoNewServices"],
    }
    status = TenantBudgetStatus.model_validate({"limits": [limit]})
    store = a_store()
    put_plan_input(store, TENANT_BUDGETS, "", a_budget(status=status))
    refusals, _ = review_service(a_body(), store)
    assert refusals == [
        "metadata.namespace: TenantBudget/team-a has spent 95 % of cost-month until "
        "2026-12-01T00:00Z, so team-a gets no new InferenceService. Wait for the next window, or "
        "raise it: kubectl tessera budget raise team-a cost-month"
    ]
    assert review_service(a_body(), store, old=a_body())[0] == []
    other = {**a_body(), "metadata": {**a_body()["metadata"], "namespace": "team-b"}}
    assert review_service(other, store)[0] == []


def a_named_body(name: str = "x", namespace: str | None = "team-a", **spec: Any) -> dict[str, Any]:
    meta = {"name": name} | ({} if namespace is None else {"namespace": namespace})
    return {"metadata": meta, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (
            INFERENCE_SERVICES,
            a_body(rollout={"strategy": "Gated", "gateRef": "nogate"}),
            "spec.rollout.gateRef: QualityGate/nogate not found in team-a",
        ),
        (
            QUALITY_GATES,
            a_named_body(suite={"claim": {"claimName": "data", "path": "suite.jsonl"}}),
            "spec.suite.claim.claimName: PersistentVolumeClaim/data not found in team-a",
        ),
        (
            QUALITY_GATES,
            a_named_body(suite={"configMap": {"name": "suite"}}, judge={"service": "judge"}),
            "spec.judge.service: InferenceService/judge not found in team-a",
        ),
        (
            MODEL_ROUTES,
            a_named_body(targets=[{"service": "chat"}]),
            "spec.targets[0].service: InferenceService/chat not found in team-a",
        ),
        (
            MODEL_ROUTES,
            a_named_body(targets=[{"name": "out", "provider": {"name": "acme", "model": "big"}}]),
            "spec.targets[0].provider.name: no ModelProvider/acme that lists the tenant of team-a",
        ),
        (
            MODEL_PROVIDERS,
            a_named_body("acme", None, **a_provider_spec()),
            "spec.tenants[0]: TenantBudget/team-a not found",
        ),
        (
            PRICE_LISTS,
            a_named_body(
                namespace=None,
                entries=[
                    {
                        "from": "2026-01-01",
                        "models": ["*"],
                        "tenants": ["nobody"],
                        "input": "1",
                        "output": "2",
                    }
                ],
            ),
            "spec.entries[0].tenants[0]: TenantBudget/nobody not found",
        ),
    ],
)
async def test_what_another_object_may_still_bring_is_a_warning_of_every_kind(
    kind: ApiResource, body: dict[str, Any], expected: str
) -> None:
    warnings = list[str]()
    await validators(a_store(), lambda: NOW)[kind.plural](body=body, warnings=warnings)
    assert expected in warnings


@pytest.mark.parametrize("kind", [QUALITY_GATES, MODEL_ROUTES, MODEL_PROVIDERS, PRICE_LISTS])
async def test_a_spec_that_only_an_edit_mends_is_refused_for_every_kind(kind: ApiResource) -> None:
    body = a_named_body(unknown=1)
    with pytest.raises(kopf.AdmissionError, match=r"^spec"):
        await validators(a_store(), lambda: NOW)[kind.plural](body=body, warnings=[])


async def test_no_warning_of_a_route_says_which_services_others_have() -> None:
    store = a_store()
    other = a_service("secret", ref=Ref("team-b", "secret"))
    put_plan_input(store, INFERENCE_SERVICES, "team-b", other)
    said = list[list[str]]()
    for name in ("team-b/secret", "team-b/none"):
        said.append([])
        body = a_named_body(targets=[{"service": name}])
        await validators(store, lambda: NOW)["modelroutes"](body=body, warnings=said[-1])
    assert said == [[], []]


def test_every_kind_that_users_write_is_validated() -> None:
    validated = validators(a_store(), lambda: NOW)
    assert validated.keys() == {kind.plural for kind in USER_KINDS}
