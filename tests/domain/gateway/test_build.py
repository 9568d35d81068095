"""The directory of a gateway, from what it observes."""

import ast
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import tessera
from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.key_record import KeyRecord
from tessera.api.meta import Condition
from tessera.api.model_files import ImageTokens
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus, ScalingStatus, TenancyStatus
from tessera.api.tenant_budget import LimitStatus, TenantBudgetStatus
from tessera.domain.gateway.access import key_identity
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import (
    Directory,
    EngineReplica,
    Identity,
    OfferedModel,
    TenantLimits,
    model_changes,
)
from tessera.domain.hardware.device import GPU
from tessera.domain.incremental import Incremental
from tessera.domain.limits.charges import charge_scopes
from tessera.domain.model.paths import own_paths
from tessera.domain.observed.snapshot import ObservedService, Pool
from tessera.domain.observed.tenant_keys import TenantKeys
from tests.builders import A100, H100, MEDIUM, NOW, a_budget, a_pod, a_pool, a_service, a_spec

DIGEST = "ab" * 32
SLICE: dict[str, Any] = {"devices": {"nvidia.com/mig-1g.10gb": 1}}
SLEEPER = {"scaling": {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "10m"}}}
POOLS = tuple(
    replace(a_pool(name), status=AcceleratorPoolStatus(product=product))
    for name, product in (("a100", A100), ("h100", H100))
)


def directory(*services: ObservedService, **fields: Any) -> Directory:
    observed = {"services": services, "budgets": (a_budget(),), "pools": POOLS, **fields}
    return build_directory(GatewayObservations(**observed), RateLimitsSpec())


def only_model(service: ObservedService, **fields: Any) -> OfferedModel:
    [model] = directory(service, **fields).models
    return model


def replica_of(service: ObservedService, **pod: Any) -> EngineReplica:
    [replica] = only_model(service, pods=(a_pod(**{**SLICE, **pod}),)).replicas
    return replica


def a_status(ratio: str | None = None, **variant: Any) -> InferenceServiceStatus:
    amounts = {"predicted": "10", "measured": "20"}
    speed = {
        "model": MEDIUM,
        "variant": "a100-1g-10gb",
        "reason": "AsPredicted",
        "itlMs": amounts,
        "tokensPerSecond": amounts,
        "ratio": ratio,
        "requests": 500,
        "at": NOW,
    }
    return InferenceServiceStatus.model_validate(
        {
            "variant": {
                "name": "a100-1g-10gb",
                "pool": "a100",
                "product": A100,
                "gpus": 1,
                "precision": "checkpoint",
                "maxModelLen": 8192,
                "maxNumSeqs": 64,
                "maxNumBatchedTokens": 2048,
                "kvCacheTokens": 100_000,
                "tokensPerSecond": 1000,
                "source": "Table",
                **variant,
            },
            **({"speed": speed} if ratio else {}),
        }
    )


def test_a_service_is_offered_under_its_names_with_its_terms() -> None:
    spec = a_spec(
        model={"servedName": "llama", "adapters": [{"name": "legal", "uri": "hf://a/b"}]},
        access={"tenants": ["team-b"], "aliases": ["default", "llama"]},
        slo={"ttftP95": "500ms"},
        **{"class": "Standard"},
    )
    assert only_model(a_service(spec=spec, status=a_status())) == OfferedModel(
        service=Ref("team-a", "chat"),
        uid="uid-chat",
        created=int(a_service().created.timestamp()),
        names=("llama", "default"),
        adapters=("legal",),
        tenant="team-a",
        tenants=frozenset({"team-b"}),
        service_class="Standard",
        ttft_seconds=0.5,
        itl_seconds=0.05,
        max_model_len=8192,
        paths=own_paths(None),
    )


@pytest.mark.parametrize(
    ("shape", "paths", "generates"),
    [
        ({"pooling": "Embed"}, own_paths("Embed"), False),
        ({"pooling": "Score"}, own_paths("Score"), False),
        ({}, own_paths(None), True),
        (None, (), True),
    ],
)
def test_a_model_has_the_paths_of_what_it_returns(
    shape: dict[str, Any] | None, paths: tuple[str, ...], generates: bool
) -> None:
    uri = {"uri": "hf://acme/own"}
    dimensions = {name: 8 for name in ("layers", "attentionHeads", "kvHeads", "headDim")}
    size = {"parameters": 10**6, "maxPositionEmbeddings": 512, **dimensions}
    model = uri if shape is None else {**uri, "shape": {**size, **shape}}
    offered = only_model(a_service(spec=a_spec(model=model)))
    assert (offered.paths, offered.generates) == (paths, generates)


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ({"pooling": "Embed"}, 64),
        ({"pooling": "Embed", "hiddenSize": 1024}, 1024),
        ({"pooling": "Tokens", "hiddenSize": 1024}, None),
        ({"pooling": "Classify"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_an_embedder_has_the_width_of_its_embeddings(
    shape: dict[str, Any] | None, width: int | None
) -> None:
    dimensions = {name: 8 for name in ("layers", "attentionHeads", "kvHeads", "headDim")}
    size = {"parameters": 10**6, "maxPositionEmbeddings": 512, **dimensions}
    model = {"uri": "hf://acme/own", **({} if shape is None else {"shape": {**size, **shape}})}
    assert only_model(a_service(spec=a_spec(model=model))).embedding_width == width


def test_a_model_has_the_bounds_of_its_images() -> None:
    for uri, image in (
        ("hf://google/gemma-3-27b-it", ImageTokens(max_tokens=256)),
        ("hf://meta-llama/Llama-3.1-8B-Instruct", None),
        ("hf://acme/own", None),
    ):
        assert only_model(a_service(spec=a_spec(model={"uri": uri}))).image == image


@pytest.mark.parametrize(
    ("fields", "desired", "asleep"),
    [
        (SLEEPER, 0, True),
        (SLEEPER, 1, False),
        (SLEEPER, None, False),
        ({"scaling": {}}, 0, False),
        ({"replicas": 0}, 0, False),
    ],
)
def test_a_service_sleeps_while_the_autoscaler_wants_no_replica(
    fields: dict[str, Any], desired: int | None, *, asleep: bool
) -> None:
    scaling = None
    if desired is not None:
        scaling = ScalingStatus(desired_replicas=desired, reason="ScaledToZero", message="")
    status = InferenceServiceStatus(scaling=scaling)
    assert only_model(a_service(spec=a_spec(**fields), status=status)).is_asleep == asleep


@pytest.mark.parametrize(
    ("status", "replicas", "listed"),
    [(None, 0, True), ("True", 0, True), ("False", 0, False), ("False", 1, True)],
)
def test_a_model_is_listed_unless_its_service_was_never_accepted(
    status: str | None, replicas: int, *, listed: bool
) -> None:
    accepted = {
        **{"type": "Accepted", "status": status, "reason": "UnknownModel", "message": ""},
        **{"observedGeneration": 1, "lastTransitionTime": NOW},
    }
    conditions = () if status is None else (Condition.model_validate(accepted),)
    service = a_service(status=InferenceServiceStatus(conditions=conditions))
    pods = tuple(a_pod() for _ in range(replicas))
    assert only_model(service, pods=pods).is_listed == listed


@pytest.mark.parametrize(
    ("tenant", "unfunded_by"),
    [
        (None, None),
        (TenancyStatus(budget="team-a", reason="NearLimit"), None),
        (
            TenancyStatus(budget="team-a", reason="NearLimit", start_refusal="no money"),
            "TenantBudget/team-a",
        ),
        (TenancyStatus(reason="BudgetRequired", start_refusal="no budget"), "no TenantBudget"),
    ],
)
def test_a_model_has_who_grants_it_no_replica(
    tenant: TenancyStatus | None, unfunded_by: str | None
) -> None:
    service = a_service(status=InferenceServiceStatus(tenant=tenant))
    assert only_model(service).unfunded_by == unfunded_by


@pytest.mark.parametrize(
    ("access", "tenants"),
    [
        ({}, {"team-a"}),
        ({"public": True}, {"team-a"}),
        ({"tenants": ["team-b"], "wake": "OwnTenant"}, {"team-a"}),
        ({"tenants": ["team-b"], "wake": "All"}, {"team-a", "team-b"}),
    ],
)
def test_a_service_is_woken_by_its_own_tenant_unless_it_allows_all(
    access: dict[str, Any], tenants: set[str]
) -> None:
    model = only_model(a_service(spec=a_spec(access=access)))
    assert {tenant for tenant in ("team-a", "team-b") if model.may_wake(tenant)} == tenants


@pytest.mark.parametrize(
    ("fields", "stopped"),
    [
        ({"replicas": 0}, True),
        ({"replicas": 1}, False),
        ({}, False),
        # Another autoscaler may raise it.
        ({"replicas": 0, "scaling": {"mode": "External"}}, False),
    ],
)
def test_a_service_with_a_fixed_number_of_0_is_stopped(
    fields: dict[str, Any], stopped: bool
) -> None:
    assert only_model(a_service(spec=a_spec(**fields))).stopped is stopped


def test_services_of_namespaces_without_a_tenant_belong_to_nobody() -> None:
    assert only_model(a_service(), budgets=()).tenant is None


def test_models_come_in_the_order_of_their_age_without_deleted_and_unreadable_ones() -> None:
    models = directory(
        a_service("young", created=NOW),
        a_service("old", created=NOW - timedelta(days=1)),
        a_service("deleted", deleting=True),
        a_service("unreadable", problem="spec.modle: unknown"),
    ).models
    assert [model.service.name for model in models] == ["old", "young"]


def test_an_edit_changes_the_models_that_it_means() -> None:
    count, incremental = 150, Incremental()
    services = [a_service(f"s{n:03}", created=NOW + timedelta(minutes=n)) for n in range(count)]
    pods = [a_pod(f"s{n:03}-0", f"s{n:03}", address=f"10.0.0.{n}", **SLICE) for n in range(count)]
    budget, last = a_budget(), Directory()

    def changed() -> tuple[int, int]:
        """Return how many models were, and are, others than in the last directory."""
        nonlocal last
        observed = GatewayObservations(
            services=tuple(services), pods=tuple(pods), budgets=(budget,), pools=POOLS
        )
        built = incremental.run(build_directory, observed, RateLimitsSpec())
        assert built == build_directory(observed, RateLimitsSpec())
        changes, last = model_changes(last.models, built.models), built
        return len(changes.old), len(changes.new)

    assert changed() == (0, count)
    services[70] = replace(services[70], spec=a_spec(slo={"ttftP95": "500ms"}), generation=2)
    assert changed() == (1, 1)
    services[70] = replace(services[70], generation=3)
    pods.reverse()
    assert changed() == (0, 0)
    pods[0] = replace(pods[0], leaving=True)
    assert changed() == (1, 1)
    del services[10]
    assert changed() == (1, 0)
    services.append(a_service("new", created=NOW))
    assert changed() == (0, 1)
    budget = a_budget(tenant={"namespaces": ["team-b"]})
    assert changed() == (count, count)


@pytest.mark.parametrize(
    ("pod", "leaving", "ready"),
    [
        ({}, False, True),
        ({"ready_since": None}, False, False),
        ({"terminating": True}, True, True),
        ({"leaving": True}, True, True),
        ({"draining_since": NOW}, True, True),
    ],
)
def test_a_replica_that_drains_gets_no_requests(
    pod: dict[str, Any], leaving: bool, ready: bool
) -> None:
    replica = replica_of(a_service(), **pod)
    assert (replica.leaving, replica.ready_since is not None) == (leaving, ready)
    assert replica.address == "127.10.0.5:8000"


def test_pods_without_an_address_and_of_other_services_are_no_replicas() -> None:
    pods = (a_pod(address=None), a_pod("other-0", "other"), a_pod("free-0", ""))
    assert only_model(a_service(), pods=pods).replicas == ()
    assert replica_of(a_service(), address="fd00::7").address == "[fd00::7]:8000"


def test_the_predicted_step_is_scaled_by_the_measured_ratio_within_bounds() -> None:
    def step(ratio: str | None) -> float:
        service = a_service(spec=a_spec(MEDIUM), status=a_status(ratio))
        step_time = replica_of(service).step_time
        assert step_time is not None
        return step_time.seconds(decoding=8, kv_tokens=10_000)

    predicted = step(None)
    assert 0.05 < predicted < 0.2
    assert step("2.00") == pytest.approx(2 * predicted)
    assert step("1000") == pytest.approx(5 * predicted)
    assert step("0.00") == pytest.approx(0.2 * predicted)


def test_a_replica_yields_the_tokens_of_a_step_that_are_measured_of_its_speculation() -> None:
    spec = a_spec(MEDIUM, engine={"speculation": {"method": "NGram"}})

    def tokens_per_step(measured: str | None) -> float:
        speculation = {"requested": "", "reason": "FasterDecoding", "message": "", "changedAt": NOW}
        status = InferenceServiceStatus.model_validate(
            {"speculation": {**speculation, "tokensPerStep": measured}}
        )
        step_time = replica_of(a_service(spec=spec, status=status)).step_time
        assert step_time is not None
        return step_time.tokens_per_step

    assert (tokens_per_step(None), tokens_per_step("2.40")) == (1.0, 2.4)


def test_every_replica_has_the_speed_limits_and_prices_of_its_own_variant() -> None:
    service = a_service(spec=a_spec(MEDIUM), status=a_status("2.00"))
    whole: dict[str, Any] = {"variant": "h100-1gpu-fp8", "devices": {GPU: 1}}
    pods = (a_pod("chat-0", **SLICE, max_num_seqs=64), a_pod("chat-1", **whole, max_num_seqs=256))
    small, large = only_model(service, pods=pods).replicas
    assert (small.variant, small.max_num_seqs) == ("a100-1g-10gb", 64)
    assert (large.variant, large.max_num_seqs) == ("h100-1gpu-fp8", 256)
    assert small.step_time is not None
    assert large.step_time is not None
    assert small.step_time.seconds(decoding=1, kv_tokens=0) > 5 * large.step_time.seconds(
        decoding=1, kv_tokens=0
    )
    assert small.step_time.source == "Measured" != large.step_time.source
    assert (str(small.price_version)[:5], str(large.price_version)[:5]) == ("a100@", "h100@")
    assert (small.precision, large.precision) == ("checkpoint", "fp8")


def test_a_new_price_makes_a_new_version_and_nothing_else_does() -> None:
    def version(pool: Pool) -> str | None:
        service = a_service(spec=a_spec(MEDIUM), status=a_status())
        [replica] = only_model(service, pods=(a_pod(**SLICE),), pools=(pool,)).replicas
        return replica.price_version

    assert version(a_pool()) == version(a_pool(prePull=True))
    assert version(a_pool()) != version(a_pool(per_gpu_hour="2.01"))


def test_the_speed_of_unknown_hardware_and_variants_is_unknown() -> None:
    service = a_service(spec=a_spec(MEDIUM), status=a_status())
    unknown_variant = replica_of(service, variant="gone-1gpu")
    assert (unknown_variant.step_time, unknown_variant.precision) == (None, None)
    unknown = replace(a_pool(), status=AcceleratorPoolStatus(product="NVIDIA-Z9"))
    [replica] = only_model(service, pods=(a_pod(**SLICE),), pools=(unknown,)).replicas
    assert (replica.step_time, replica.price_version is None) == (None, False)


def test_a_limit_that_acts_leaves_its_tenant_the_cheapest_targets() -> None:
    limit = {"name": "a", "basis": "Cost", "start": NOW, "end": NOW, "limit": "1", "spent": "1"}
    for actions in ([], ["HoldBatches"], ["CheaperTargets"]):
        acting = LimitStatus.model_validate({**limit, "actions": actions})
        status = TenantBudgetStatus(limits=(LimitStatus.model_validate(limit), acting))
        [tenant] = directory(budgets=(a_budget(status=status),)).tenants.values()
        assert tenant.cheaper_targets == (actions == ["CheaperTargets"])


def test_limits_of_tenants_and_teams_are_taken_from_the_budget() -> None:
    budget = a_budget(
        rateLimits={"requests": {"perMinute": 60}, "concurrentRequests": 8},
        teams={"search": {"totalTokens": {"perDay": 1000}}},
        weight="2",
        allowDowngrade=False,
    )
    [tenant] = directory(budgets=(budget,)).tenants.values()
    assert [(each.name, each.amount) for each in tenant.outside] == [("outside Hour", 0)]
    assert replace(tenant, generation=0, outside=()) == TenantLimits(
        name="team-a",
        namespaces=("team-a",),
        weight=2.0,
        allow_downgrade=False,
        limits=RateLimitsSpec(requests=PeriodLimits(per_minute=60), concurrent_requests=8),
        teams={"search": RateLimitsSpec(total_tokens=PeriodLimits(per_day=1000))},
    )


@pytest.mark.parametrize("access", [{"public": True}, {"tenants": ["team-b", "team-c"]}])
def test_a_model_that_requires_charges_is_for_other_tenants_with_a_limit_of_them(
    access: dict[str, Any],
) -> None:
    charge = [{"window": "Day", "amount": "1", "basis": "Charge"}]
    budgets = (a_budget(), a_budget("team-b", limits=charge), a_budget("team-c"))
    service = a_service(spec=a_spec(access={"requireCharge": True, **access}))
    model = only_model(service, budgets=budgets)
    assert (model.tenants, model.public) == (frozenset({"team-b"}), False)


def a_secret(name: str = "keys", tenant: str = "team-a", **records: dict[str, Any]) -> TenantKeys:
    return TenantKeys(
        secret=Ref("tessera-gateway", name),
        tenant=tenant,
        records={key: KeyRecord.model_validate(record) for key, record in records.items()},
    )


@pytest.mark.parametrize(
    "of_limit", [{"for": {"key": "*"}}, {"for": {"key": "ci"}}, {"for": {"key": "other"}}]
)
def test_a_key_that_was_rotated_has_the_limits_of_its_successor(of_limit: dict[str, Any]) -> None:
    """Also those that the successor was given since, and where an older release rotated it."""
    limit = {"window": "Month", "amount": "20", "basis": "Charge", **of_limit}
    budget = {"amount": "20", "window": "Month"}
    old: dict[str, Any] = {"sha256": DIGEST, "budget": budget, "team": "search"}
    new: dict[str, Any] = {
        **old,
        "sha256": "e" * 64,
        "budget": {"amount": "40", "window": "Month"},
        "rateLimits": {"requests": {"perMinute": 60}},
    }
    known = directory(
        budgets=(a_budget(limits=[limit]),),
        keys=(a_secret("keys", "team-a", **{f"ci.{DIGEST[:8]}": old, "ci": new}),),
    )
    former, current = (key_identity(known.keys[each["sha256"]], NOW) for each in (old, new))
    assert isinstance(former, Identity)
    assert former == current
    scopes = [scope.key for scope in charge_scopes(known, former, None, "")]
    expected = {"*": ["team-a/charge-month-key/Key/ci"], "ci": ["team-a/charge-month-key-ci"]}
    assert scopes == [*expected.get(of_limit["for"]["key"], []), "team-a/Key/ci"]


def test_senders_are_known_by_the_line_of_their_key() -> None:
    """Limits, rates, sums, queues and records read an Identity, and no name of a record."""
    values = [
        keyword.value
        for path in sorted(Path(tessera.__path__[0]).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Identity"
        for keyword in node.keywords
        if keyword.arg == "key"
    ]
    assert len(values) >= 2
    assert {getattr(value, "attr", "") for value in values} == {"line"}


def test_keys_are_found_by_their_digest() -> None:
    record = {"sha256": DIGEST, "team": "search", "models": ["chat"], "expires": NOW}
    key = directory(keys=(a_secret(ci=record),)).keys[DIGEST]
    assert (key.name, key.tenant, key.team, key.models, key.expires) == (
        "ci",
        "team-a",
        "search",
        ("chat",),
        NOW,
    )


def test_keys_of_unknown_tenants_do_not_count() -> None:
    without = directory(keys=(a_secret(tenant="team-z", ci={"sha256": DIGEST}),))
    assert not without.keys
    assert without.tenantless_keys[DIGEST].tenant == "team-z"


def test_of_one_name_or_digest_the_first_secret_counts() -> None:
    first = a_secret("a", ci={"sha256": DIGEST})
    second = a_secret("b", ci={"sha256": "cd" * 32}, copy={"sha256": DIGEST})
    assert [key.name for key in directory(keys=(second, first)).keys.values()] == ["ci"]


def test_the_context_of_a_model_is_the_longest_that_a_ready_replica_takes() -> None:
    def pods(**ready: int) -> Any:
        return tuple(a_pod(name, **SLICE, max_model_len=length) for name, length in ready.items())

    def longest(*pods: Any) -> int | None:
        return only_model(a_service(status=a_status()), pods=pods).max_model_len

    small, large = pods(small=4096, large=16_384)
    assert longest(small, large) == 16_384
    assert longest(small, replace(large, draining_since=NOW)) == 4096
    # While none is ready, it is that of those that the service will have.
    assert longest(replace(large, ready_since=None)) == longest() == 8192
    assert longest(a_pod(**SLICE)) == 8192


def test_a_changed_version_is_a_model_without_names_of_its_own_replicas() -> None:
    serving = a_pod("chat-1", **SLICE)
    tried = a_pod("chat-2", **SLICE, ready_since=None, leaving=True, tried=True)
    service = a_service(spec=a_spec(access={"tenants": ["team-b"]}), status=a_status())
    model, changed = directory(service, pods=(serving, tried)).models
    assert model == only_model(service, pods=(serving,))
    assert (changed.service, changed.all_names) == (service.ref.candidate, ())
    assert changed.names == model.names
    assert changed.uid != model.uid
    [replica] = changed.replicas
    assert replica.pod == tried.ref
    assert (replica.ready_since, replica.leaving) == (tried.started or tried.created, False)


def test_the_replica_of_a_changed_version_answers_once_its_engine_does() -> None:
    away: dict[str, Any] = {"ready_since": None, "containers_ready": False}
    tried = a_pod("chat-2", leaving=True, tried=True, **SLICE, **away)
    [_, changed] = directory(a_service(), pods=(tried,)).models
    assert [each.ready_since for each in changed.replicas] == [None]


def test_gates_never_ask_the_replica_of_a_version_that_was_given_up() -> None:
    tried: dict[str, Any] = {"ready_since": None, "leaving": True, "tried": True, **SLICE}
    former = a_pod("chat-1", created=NOW - timedelta(minutes=9), template_digest="a" * 16, **tried)
    newest = a_pod("chat-2", created=NOW - timedelta(minutes=1), template_digest="b" * 16, **tried)
    [model, changed] = directory(a_service(), pods=(former, newest)).models
    assert [each.pod for each in changed.replicas] == [newest.ref]
    assert model.replicas == ()
