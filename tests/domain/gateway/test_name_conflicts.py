"""Services with one name: who gets the requests, and what the other one's status says."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.reasons import Accepted
from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.gateway.access import tenant_models
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.name_conflicts import NameConflict, find_name_conflicts
from tessera.domain.gateway.name_rights import NameRights
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.status.events import event_notes
from tessera.domain.status.service import service_status
from tests.builders import NOW, a_budget, a_service, a_snapshot, a_spec, plan_of

TENANTS = {name: (name,) for name in ("team-a", "team-b", "team-c")}


def named(
    age_days: int, ref: str, spec: dict[str, Any] | None = None, **access: Any
) -> ObservedService:
    """Build a service with the alias `default`."""
    namespace, _, name = ref.partition("/")
    access = {"aliases": ["default"], **access}
    return a_service(
        name,
        a_spec(access=access, **(spec or {})),
        ref=Ref(namespace, name),
        uid=f"uid-{ref}",
        created=NOW - timedelta(days=age_days),
    )


OWN = named(2, "team-a/chat")
A_GRANT = {"names": ["default"], "public": True}
CASES: dict[str, tuple[Sequence[ObservedService], dict[str, tuple[str, str]]]] = {
    # Which service has a conflict, and a tenant whose requests it does not get.
    "of one tenant the newer": (
        [named(1, "team-a/new"), OWN],
        {"team-a/new": ("TenantBudget/team-a", "team-a")},
    ),
    "of two tenants none": ([named(1, "team-b/new"), OWN], {}),
    "shared: the one without the grant, of tenants without their own": (
        [named(1, "team-a/new", public=True), named(2, "team-b/old", public=True)],
        {"team-b/old": ("other tenants", "team-c")},
    ),
    "a tenant's own is its choice": (
        [named(3, "team-b/shared", tenants=["team-a"]), named(1, "team-a/new")],
        {},
    ),
    "without a tenant nobody sends requests": (
        [named(2, "nobody/old"), named(1, "nobody/new")],
        {},
    ),
    "a deleted one gets none": ([replace(OWN, deleting=True), named(1, "team-a/new")], {}),
}


@pytest.mark.parametrize(("services", "expected"), CASES.values(), ids=CASES)
def test_the_service_that_does_not_get_the_requests_has_a_conflict(
    services: Sequence[ObservedService], expected: dict[str, tuple[str, str]]
) -> None:
    granted = [A_GRANT] if any(each.spec and each.spec.access.public for each in services) else []
    budgets = tuple(
        a_budget(name, publishing=granted if name == "team-a" else []) for name in TENANTS
    )
    directory = build_directory(
        GatewayObservations(services=services, budgets=budgets), RateLimitsSpec()
    )
    conflicts_by_service = find_name_conflicts(services, TENANTS, directory.name_rights)
    lost = {
        str(ref): conflict
        for ref, conflicts in conflicts_by_service.items()
        for conflict in conflicts
        if conflict.reason is Accepted.NAME_CONFLICT
    }
    assert {ref: each.consumers for ref, each in lost.items()} == {
        ref: consumers for ref, (consumers, _) in expected.items()
    }
    for ref, (_, tenant) in expected.items():
        receiver = tenant_models(directory, tenant)[lost[ref].name]
        assert receiver.service == lost[ref].other
    for service in services:
        alone = find_name_conflicts(services, TENANTS, directory.name_rights, service.ref)
        assert alone.get(service.ref) == conflicts_by_service.get(service.ref)


def test_adapters_and_served_names_conflict_too() -> None:
    adapter = {"model": {"adapters": [{"name": "legal", "uri": "hf://a/b"}]}}
    older = named(2, "team-a/old", adapter, aliases=["new"])
    newer = named(1, "team-a/new", adapter, aliases=[])
    conflicts = find_name_conflicts([older, newer], TENANTS, NameRights())
    both: dict[str, Any] = {
        "tenant": "team-a",
        "holder": "team-a",
        "consumers": "TenantBudget/team-a",
    }
    assert conflicts == {
        service.ref: tuple(
            NameConflict(reason=reason, name=name, other=other.ref, **both)
            for name in ("new", "legal")
        )
        for service, other, reason in (
            (newer, older, Accepted.NAME_CONFLICT),
            (older, newer, Accepted.NAME_CONTESTED),
        )
    }


def test_the_status_of_the_newer_service_does_not_say_that_all_is_well() -> None:
    newer = named(1, "team-a/new")
    snapshot = a_snapshot(OWN, newer, budgets=(a_budget(),))
    plan = plan_of(snapshot, Config(gateways=True))
    statuses = {
        ref.name: service_status(snapshot, service_plan, None, None)
        for ref, service_plan in plan.service_plans.items()
    }
    accepted = {
        name: next(each for each in status.conditions if each.type == "Accepted")
        for name, status in statuses.items()
    }
    assert {name: condition.reason for name, condition in accepted.items()} == {
        "chat": "NameContested",
        "new": "NameConflict",
    }
    assert "InferenceService/team-a/chat, which gets the requests" in accepted["new"].message
    assert "InferenceService/team-a/new, which does not get" in accepted["chat"].message
    assert not [note for note in event_notes(OWN.status, statuses["chat"]) if note.is_warning]
    notes = [note for note in event_notes(newer.status, statuses["new"]) if note.is_warning]
    assert [note.reason for note in notes if note.action == "Accepted"] == ["NameConflict"]
    assert plan_of(snapshot).service_plans[newer.ref].accepted.reason == "Valid"


def test_a_cycle_with_memory_follows_names_that_change() -> None:
    incremental, config = Incremental(), Config(gateways=True)
    newer = named(1, "team-a/new")
    conflicting = a_snapshot(OWN, newer, budgets=(a_budget(),))
    renamed = replace(conflicting, services=(named(2, "team-a/chat", aliases=[]), newer))
    reasons = [
        plan_of(snapshot, config, incremental=incremental).service_plans[newer.ref].accepted.reason
        for snapshot in (conflicting, conflicting, renamed, conflicting)
    ]
    assert reasons == ["NameConflict", "NameConflict", "Valid", "NameConflict"]
