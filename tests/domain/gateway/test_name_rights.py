"""Names are a right: who gets which service by a name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.key_record import KeyRecord
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.reasons import Accepted
from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.gateway.access import key_identity, tenant_models, visible_models
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Directory
from tessera.domain.gateway.name_conflicts import NameConflict, find_name_conflicts
from tessera.domain.observed.snapshot import Budget, ObservedService
from tessera.domain.observed.tenant_keys import TenantKeys
from tests.builders import NOW, a_budget, a_service, a_snapshot, a_spec, plan_of
from tests.properties import applies

LLAMA, EVIL = "team-a/llama-3", "team-evil/x"
PUBLIC: dict[str, Any] = {"public": True}


def serve(
    ref: str, age_days: int = 1, served_name: str | None = None, **access: Any
) -> ObservedService:
    namespace, _, name = ref.partition("/")
    model = {"servedName": served_name} if served_name else {}
    return a_service(
        name,
        a_spec(access=access, model=model),
        ref=Ref(namespace, name),
        uid=f"uid-{ref}-{age_days}",
        created=NOW - timedelta(days=age_days),
    )


def budgets(**grants: Sequence[Mapping[str, Any]]) -> tuple[Budget, ...]:
    """Build the budgets of four tenants; `team_a` are the grants of team-a."""
    return tuple(
        a_budget(name, publishing=list(grants.get(name.replace("-", "_"), ())))
        for name in ("team-a", "team-b", "team-c", "team-evil")
    )


def a_directory(
    services: Sequence[ObservedService],
    granted: Sequence[Budget] = budgets(),
    **fields: Any,
) -> Directory:
    observed = GatewayObservations(services=services, budgets=granted, **fields)
    return build_directory(observed, RateLimitsSpec())


def receivers(directory: Directory, tenant: str = "team-b") -> dict[str, str]:
    return {name: str(model.service) for name, model in tenant_models(directory, tenant).items()}


def reasons(
    services: Sequence[ObservedService], granted: Sequence[Budget]
) -> dict[str, tuple[str, str]]:
    """Return reason and message of the condition Accepted of each service."""
    snapshot = a_snapshot(*services, budgets=tuple(granted))
    plan = plan_of(snapshot, Config(gateways=True))
    return {
        str(ref): (str(each.accepted.reason), each.accepted.message)
        for ref, each in plan.service_plans.items()
    }


NAMES = ["gpt-4o", "claude-sonnet-4-5", "llama-3"]
GRASPING = serve(EVIL, 9, aliases=[*NAMES, "GPT-4o", "Llama-3"], **PUBLIC)
A_GRANT = {"names": ["llama-3", "gpt-4o"], "public": True}


def test_a_name_of_a_grant_goes_to_nobody_else_whether_its_service_is_there_or_not() -> None:
    """Older, newer, and while the owner's service is recreated, moved or restored."""
    granted = a_budget(publishing=[A_GRANT], tenant={"namespaces": ["team-a", "team-a-2"]})
    all_budgets = (granted, *budgets()[1:])
    owners: dict[str, list[ObservedService]] = {
        "older": [serve(LLAMA, 20, **PUBLIC)],
        "newer": [serve(LLAMA, 1, **PUBLIC)],
        "away": [],
        "moved": [serve("team-a-2/llama-3", 0, **PUBLIC)],
        "deleted": [replace(serve(LLAMA, 20, **PUBLIC), deleting=True)],
    }
    for state, owner in owners.items():
        services = receivers(a_directory([GRASPING, *owner], all_budgets))
        taken = {name for name, service in services.items() if service == EVIL}
        assert not {name.lower() for name in taken} & {"llama-3", "gpt-4o"}, state
        expected = {"older": LLAMA, "newer": LLAMA, "moved": "team-a-2/llama-3"}.get(state)
        assert services.get("llama-3") == expected, state
        assert "claude-sonnet-4-5" not in services


def test_without_a_grant_no_name_reaches_another_tenant() -> None:
    services = [GRASPING, serve("team-a/chat", tenants=["team-b"]), serve("nobody/open", **PUBLIC)]
    directory = a_directory(services)
    assert receivers(directory) == {}
    assert receivers(directory, "team-a") == {"chat": "team-a/chat"}
    assert set(receivers(directory, "team-evil")) == {"x", *NAMES, "GPT-4o", "Llama-3"}


GRANTS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], dict[str, set[str]]]] = {
    # A grant, the access of team-a/chat with the alias default, and what others get.
    "to one": ({"tenants": ["team-b"]}, PUBLIC, {"team-b": {"chat"}, "team-c": set()}),
    "to all": ({"public": True}, PUBLIC, {"team-b": {"chat"}, "team-c": {"chat"}}),
    "the owner decides": (
        {"public": True},
        {"tenants": ["team-c"]},
        {"team-b": set(), "team-c": {"chat"}},
    ),
    "not asked for": ({"public": True}, {}, {"team-b": set(), "team-c": set()}),
    "in any case": (
        {"names": ["chat", "default"], "public": True},
        {**PUBLIC, "aliases": ["Default"]},
        {"team-b": {"chat", "Default"}},
    ),
    "another namespace": ({"namespaces": ["other"], "public": True}, PUBLIC, {"team-b": set()}),
}


@pytest.mark.parametrize(("grant", "access", "expected"), GRANTS.values(), ids=GRANTS)
def test_others_get_a_service_by_the_names_that_a_grant_and_its_owner_give_them(
    grant: Mapping[str, Any], access: Mapping[str, Any], expected: dict[str, set[str]]
) -> None:
    own = a_budget(
        publishing=[{"names": ["chat"], **grant}], tenant={"namespaces": ["team-a", "other"]}
    )
    service = serve("team-a/chat", **{"aliases": ["default"], **access})
    directory = a_directory([service], (own, *budgets()[1:]))
    assert {tenant: set(receivers(directory, tenant)) for tenant in expected} == expected


def test_a_tenant_gets_models_of_those_alone_that_it_accepts() -> None:
    services = [serve("team-a/chat", **PUBLIC), serve("team-c/code", **PUBLIC)]
    granted = budgets(
        team_a=[{"names": ["chat"], "public": True}], team_c=[{"names": ["code"], "public": True}]
    )
    picky = {
        accepted: tuple(
            replace(each, spec=each.spec.model_copy(update={"accepted_publishers": accepted}))
            if each.name == "team-b" and each.spec
            else each
            for each in granted
        )
        for accepted in (None, (), ("team-c",))
    }
    assert {
        accepted: set(receivers(a_directory(services, each))) for accepted, each in picky.items()
    } == {None: {"chat", "code"}, (): set(), ("team-c",): {"code"}}
    named = [serve("team-a/chat", tenants=["team-b"])]
    reason, message = reasons(named, picky["team-c",])["team-a/chat"]
    assert reason == "PublisherNotAccepted"
    assert "TenantBudget/team-b; have it added to spec.acceptedPublishers" in message


def test_namespaces_of_one_tenant_get_the_names_that_its_grant_gives_them() -> None:
    """Also for the tenant itself, whoever is older and while the other one is away."""
    production, test = serve("prod/llama", 1), serve("dev/x", 9, aliases=["llama"])
    unpinned = a_budget(tenant={"namespaces": ["prod", "dev"]})
    grant = {"names": ["llama"], "namespaces": ["prod"]}
    pinned = a_budget(tenant={"namespaces": ["prod", "dev"]}, publishing=[grant])
    for services, budget, service in (
        ((production, test), unpinned, "dev/x"),
        ((production, test), pinned, "prod/llama"),
        ((test,), unpinned, "dev/x"),
        ((test,), pinned, None),
    ):
        assert receivers(a_directory(services, (budget,)), "team-a").get("llama") == service
    status = reasons((production, test), (pinned,))
    assert status["dev/x"][0] == "NameConflict"
    assert "InferenceService/prod/llama, which gets" in status["dev/x"][1]
    assert status["prod/llama"][0] == "NameContested"
    assert "belongs to other namespaces" in reasons((test,), (pinned,))["dev/x"][1]


def test_a_tenant_may_name_a_service_of_its_own_like_a_published_one_and_keep_that() -> None:
    published, own = serve("team-a/llama", **PUBLIC), serve("team-b/llama")
    grant = [{"names": ["llama"], "public": True}]
    shadowing = budgets(team_a=grant)
    keeping = budgets(team_a=grant, team_b=[{"names": ["llama"]}])
    for services, granted, service in (
        ((published, own), shadowing, "team-b/llama"),
        ((published,), shadowing, "team-a/llama"),
        ((published, own), keeping, "team-b/llama"),
        ((published,), keeping, None),
    ):
        directory = a_directory(services, granted)
        assert receivers(directory).get("llama") == service
        assert receivers(directory, "team-c") == {"llama": "team-a/llama"}
        assert reasons(services, granted)["team-a/llama"][0] == "Valid"


def scoped(directory: Directory, now: Any = NOW) -> dict[str, str]:
    """Return what the only key of a directory opens."""
    [key] = directory.keys.values()
    identity = key_identity(key, now)
    assert not isinstance(identity, str)
    visible = visible_models(tenant_models(directory, key.tenant), identity)
    return {name: str(model.service) for name, model in visible.items()}


KEYS: dict[str, tuple[Mapping[str, Any], dict[str, str]]] = {
    "all": ({}, {"llama-3": LLAMA, "chat": LLAMA, "x": EVIL, "best": EVIL}),
    "a name": ({"models": ["llama-3"]}, {"llama-3": LLAMA, "chat": LLAMA}),
    "a service": ({"services": [LLAMA]}, {"llama-3": LLAMA, "chat": LLAMA}),
    "another service": ({"services": [EVIL]}, {"x": EVIL, "best": EVIL}),
    "a name of a service": ({"models": ["x"], "services": [EVIL]}, {"x": EVIL, "best": EVIL}),
    "a name of another": ({"models": ["llama-3"], "services": [EVIL]}, {}),
}


@pytest.mark.parametrize(("scope", "visible"), KEYS.values(), ids=KEYS)
def test_a_key_opens_the_service_that_its_scope_means_and_none_that_lists_the_name_too(
    scope: Mapping[str, Any], visible: dict[str, str]
) -> None:
    record = KeyRecord.model_validate({"sha256": "ab" * 32, **scope})
    keys = [TenantKeys(secret=Ref("s", "k"), tenant="team-b", records={"ci": record})]
    owner = serve(LLAMA, 9, aliases=["chat"], **PUBLIC)
    newer = serve(EVIL, 1, aliases=["llama-3", "best"], **PUBLIC)
    granted = budgets(
        team_a=[{"names": ["llama-3", "chat"], "public": True}],
        team_evil=[{"names": ["x", "best"], "public": True}],
    )
    assert scoped(a_directory([owner, newer], granted, keys=keys)) == visible
    # The owner is recreated and so the newer one: its service and a granted name stay meant.
    recreated = replace(owner, created=NOW, uid="again")
    assert scoped(a_directory([recreated, newer], granted, keys=keys)) == visible
    if scope.get("services") == [LLAMA] or scope.get("models") == ["llama-3"]:
        assert EVIL not in scoped(a_directory([newer], granted, keys=keys)).values()
    if "services" in scope:
        assert LLAMA not in scoped(a_directory([newer], granted, keys=keys)).values()


def test_others_get_a_service_once_a_grant_has_its_name_and_its_status_says_so_until_then() -> None:
    services = [
        serve("team-a/chat", aliases=["default"], tenants=["team-b"]),
        serve("team-c/code", **PUBLIC),
        serve("team-b/own", aliases=["mine"]),
        serve("nobody/open", **PUBLIC),
    ]
    own = {"own": "team-b/own", "mine": "team-b/own"}
    assert receivers(a_directory(services)) == own
    status = reasons(services, budgets())
    assert {ref: reason for ref, (reason, _) in status.items()} == {
        "team-a/chat": "NameNotPublished",
        "team-c/code": "NameNotPublished",
        "team-b/own": "Valid",
        "nobody/open": "NameNotPublished",
    }
    assert (
        "spec.access.aliases[0]: default cannot be used by TenantBudget/team-b, since no grant in "
        "spec.publishing of TenantBudget/team-a has it for them; ask the platform team for a grant "
        "(docs/tasks/publish-models.md)"
    ) in status["team-a/chat"][1]
    assert status["nobody/open"][1].startswith(
        "metadata.name: open cannot be used by other tenants, since no TenantBudget has its "
        "namespace, so no grant can have it; ask the platform team"
    )

    granted = budgets(
        team_a=[{"names": ["chat", "default"], "tenants": ["team-b"]}],
        team_c=[{"names": ["code"], "public": True}],
    )
    all_names = {"chat": "team-a/chat", "default": "team-a/chat", "code": "team-c/code"}
    assert receivers(a_directory(services, granted)) == all_names | own
    assert {reason for reason, _ in reasons(services[:3], granted).values()} == {"Valid"}


def test_a_tenant_learns_that_a_name_is_taken_and_not_by_whom() -> None:
    services = [serve(LLAMA, **PUBLIC), serve(EVIL, 9, aliases=["llama-3"], tenants=["team-b"])]
    status = reasons(services, budgets(team_a=[A_GRANT]))
    assert (status[EVIL][0], status[LLAMA][0]) == ("NameConflict", "NameContested")
    assert "another tenant has the name llama-3 too" in status[LLAMA][1]
    for each in (status, reasons(services, budgets())):
        for reader, other in ((EVIL, "team-a"), (LLAMA, "team-evil")):
            assert other not in each[reader][1]
    away = reasons(services[1:], budgets(team_a=[A_GRANT]))
    assert away[EVIL][0] == "NameConflict"
    assert "llama-3 is taken, so requests of TenantBudget/team-b" in away[EVIL][1]
    assert "team-a" not in away[EVIL][1]


SECRET: dict[str, tuple[Sequence[ObservedService], Sequence[Mapping[str, Any]]]] = {
    "a service": ([serve("team-b/secret")], ()),
    "an older service": ([serve("team-b/secret", 20)], ()),
    "an alias": ([serve("team-b/s", aliases=["secret"])], ()),
    "a name that it keeps": ([], [{"names": ["secret"]}]),
}


@pytest.mark.parametrize("access", [{"tenants": ["team-b"]}, PUBLIC, {}], ids=["one", "all", "no"])
def test_no_status_differs_by_what_another_tenant_has_for_itself(access: Mapping[str, Any]) -> None:
    guess = serve(EVIL, 9, aliases=["secret"], **access)
    for published in ((), [{"names": ["secret"], "public": True}]):
        nothing = reasons([guess], budgets(team_a=published))[EVIL]
        for services, reserved in SECRET.values():
            grants = budgets(team_a=published, team_b=reserved)
            assert reasons([guess, *services], grants)[EVIL] == nothing


def test_without_a_budget_a_namespace_learns_no_more_of_others_than_a_tenant() -> None:
    older = serve("nobody/x", 2, aliases=["llama"], **PUBLIC)
    newer = serve("no-one/x", 1, aliases=["llama"], **PUBLIC)
    for reader, other in ((older, newer), (newer, older)):
        reason, message = reasons([older, newer], budgets())[str(reader.ref)]
        assert reason == "NameNotPublished"
        assert other.ref.namespace not in message


TENANTS = ("team-a", "team-b", "team-c")
SPELLINGS = ("llama", "LLaMA", "chat")


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[ObservedService], list[Budget]]:
    """Draw services that list a few names, and the budgets of three tenants of two namespaces."""
    consumers = st.lists(st.sampled_from(TENANTS), unique=True, max_size=2)
    services = [
        serve(
            f"{namespace}/s{number}",
            draw(st.integers(0, 3)),
            draw(st.sampled_from(SPELLINGS)),
            aliases=draw(st.lists(st.sampled_from(SPELLINGS), unique=True, max_size=2)),
            tenants=draw(consumers),
            public=draw(st.booleans()),
        )
        for number, namespace in enumerate(
            draw(st.lists(st.sampled_from([*TENANTS, "team-a-2", "nobody"]), max_size=5))
        )
    ]
    drawn = []
    for tenant in TENANTS:
        namespaces = ["team-a", "team-a-2"] if tenant == "team-a" else [tenant]
        grant = st.fixed_dictionaries(
            {
                "names": st.lists(st.sampled_from(["llama", "chat"]), unique=True, min_size=1),
                "tenants": consumers,
                "public": st.booleans(),
                "namespaces": st.lists(st.sampled_from(namespaces), unique=True),
            }
        )
        fields: dict[str, Any] = {
            "publishing": draw(st.lists(grant, max_size=2)),
            "acceptedPublishers": draw(st.none() | consumers),
            "tenant": {"namespaces": namespaces},
        }
        age = timedelta(days=draw(st.integers(0, 2)))
        drawn.append(replace(a_budget(tenant, **fields), created=NOW - age))
    return services, drawn


def in_force(
    directory: Directory, services: Sequence[ObservedService]
) -> Iterator[tuple[str, str, ObservedService]]:
    """Yield who gets which service by which name."""
    by_ref = {service.ref: service for service in services}
    for tenant in directory.tenants:
        for name, model in tenant_models(directory, tenant).items():
            yield tenant, name, by_ref[model.service]


@applies(90)
@given(fleet=fleets(), seed=st.randoms(use_true_random=False))
def test_no_tenant_gets_a_service_of_another_by_a_name_that_it_has_no_right_to(
    fleet: tuple[list[ObservedService], list[Budget]], seed: Any
) -> None:
    """The order of objects does not matter, and the statuses say the same as the gateway does."""
    services, all_budgets = fleet
    directory = a_directory(services, all_budgets)
    owner = {
        name: each.name for each in all_budgets if each.spec for name in each.spec.tenant.namespaces
    }
    rights = directory.name_rights
    for consumer, name, service in in_force(directory, services):
        tenant = owner.get(service.ref.namespace)
        grants = {
            (grantor, name)
            for name, by_consumer in rights.holders.items()
            for key, (grantor, namespaces) in by_consumer.items()
            if key in (consumer, "*") and service.ref.namespace in namespaces
        }
        holder = rights.holder(name, consumer)
        if tenant != consumer:
            assert service.spec is not None
            assert service.spec.access.public or consumer in service.spec.access.tenants
            assert holder is not None
            assert holder.tenant == tenant
            assert (tenant, name.lower()) in grants

    shuffled, again = list(services), list(all_budgets)
    seed.shuffle(shuffled)
    seed.shuffle(again)
    other = a_directory(shuffled, again)
    assert [receivers(other, each) for each in TENANTS] == [
        receivers(directory, each) for each in TENANTS
    ]

    conflicts = find_name_conflicts(
        services, {each.name: each.namespaces for each in directory.tenants.values()}, rights
    )
    assert conflicts == find_name_conflicts(
        shuffled, {each.name: each.namespaces for each in directory.tenants.values()}, rights
    )
    assert_reported(directory, conflicts)


def assert_reported(directory: Directory, conflicts: Mapping[Ref, Sequence[NameConflict]]) -> None:
    """A service has a conflict exactly where some tenant of its spec does not get it.

    What the tenant has for itself makes no difference to others.
    """
    public = {tenant: without_own(directory, tenant) for tenant in directory.tenants}
    for model in directory.models:
        for name in model.names:
            expected = set()
            for tenant in directory.tenants:
                if not (tenant == model.tenant or model.public or tenant in model.tenants):
                    continue
                as_seen = directory if tenant == model.tenant else public[tenant]
                rights, holder = as_seen.name_rights, as_seen.name_rights.holder(name, tenant)
                getter = tenant_models(as_seen, tenant).get(name)
                is_mine = getter is not None and getter.service == model.service
                if not is_mine and (tenant == model.tenant or rights.accepts(tenant, model.tenant)):
                    is_taken = holder is not None or getter is not None
                    expected.add(
                        Accepted.NAME_CONFLICT if is_taken else Accepted.NAME_NOT_PUBLISHED
                    )
            reported = {
                conflict.reason
                for conflict in conflicts.get(model.service, ())
                if conflict.name == name and conflict.reason is not Accepted.NAME_CONTESTED
            }
            assert reported == expected, (model.service, name)


def without_own(directory: Directory, tenant: str) -> Directory:
    """Return a directory without what a tenant has for itself."""
    holders = {
        name: {
            consumer: holder
            for consumer, holder in by_consumer.items()
            if not consumer == holder.tenant == tenant
        }
        for name, by_consumer in directory.name_rights.holders.items()
    }
    return replace(
        directory,
        models=tuple(model for model in directory.models if model.tenant != tenant),
        name_rights=replace(directory.name_rights, holders=holders),
    )
