"""`tessera budget override` and `raise` over an in-memory cluster."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest

from tessera.adapters.kube.object_parsing import parse_own
from tessera.cli.budget.command import override, parse_override
from tessera.cli.budget.raise_limit import parse_raise, raise_limit
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError, DeniedError
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.names import RAISES_ANNOTATION
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.cli.memory_api import MemoryApi
from tests.memory_cluster import MemoryCluster

UNTIL = (NOW + timedelta(days=1)).isoformat()


async def test_the_override_is_an_annotation_that_the_operator_reads() -> None:
    cluster = MemoryCluster()
    key = cluster.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": {}})
    requested = parse_override(UNTIL, "INC-7", NOW)
    api = MemoryApi(cluster)
    text = (await override(Reader(api), "team-a", requested, "text")).text
    assert "TenantBudget/team-a: override until 2026-11-21T12:00Z" in text
    (_, _, patch) = api.sent[-1]
    cluster.objects[key]["metadata"] |= patch["metadata"]
    assert parse_own(TENANT_BUDGETS, cluster.objects[key]).override == requested
    output = await override(Reader(api), "team-a", requested, "json")
    assert json.loads(output.text)["reason"] == "INC-7"


@pytest.mark.parametrize(
    ("until", "reason", "message"),
    [
        ("soon", "a", "not a time"),
        ("2026-11-21T12:00:00", "a", "time zone is missing"),
        ("2026-11-20T11:59:00Z", "a", "not within the next 31 days"),
        ("2027-11-20T12:00:00Z", "a", "not within the next 31 days"),
        (UNTIL, "", "1 to 256 characters"),
    ],
)
def test_an_override_without_an_end_or_a_reason_is_refused(
    until: str, reason: str, message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        parse_override(until, reason, NOW)


async def test_only_who_may_change_the_budget_may_override_it() -> None:
    api = MemoryApi(MemoryCluster(), status=403)
    with pytest.raises(DeniedError, match="permission denied: patch TenantBudget/team-a"):
        await override(Reader(api), "team-a", parse_override(UNTIL, "a", NOW), "text")


def the_options(**changes: str) -> SimpleNamespace:
    options = {"limit": "cost-month", "by": "50", "until": UNTIL, "reason": "INC-8"}
    return SimpleNamespace(**{**options, **changes})


def a_cluster_with_limits(**annotations: str) -> tuple[MemoryCluster, ObjectKey]:
    cluster = MemoryCluster()
    limits = [{"window": "Month", "amount": "100"}, {"window": "Day", "amount": "9", "name": "day"}]
    spec = {"owner": "ann", "tenant": {"namespaces": ["team-a"]}, "limits": limits}
    metadata = {"name": "team-a", "annotations": annotations}
    return cluster, cluster.put(TENANT_BUDGETS, {"metadata": metadata, "spec": spec})


async def test_a_raise_is_an_annotation_beside_the_raises_of_other_limits() -> None:
    cluster, key = a_cluster_with_limits()
    api = MemoryApi(cluster)
    for options in (
        the_options(limit="day", by="1.50"),
        the_options(until=(NOW + timedelta(hours=1)).isoformat()),
        the_options(by="70"),
    ):
        output = await raise_limit(Reader(api), "team-a", parse_raise(options, NOW), NOW, "text")
        (_, _, patch) = api.sent[-1]
        annotations = patch["metadata"]["annotations"]
        cluster.objects[key]["metadata"]["annotations"] |= annotations
    assert "cost-month raised by 70 USD until 2026-11-21T12:00Z" in output.text
    day, month = parse_own(TENANT_BUDGETS, cluster.objects[key]).raises
    assert (day.limit, str(day.by), day.reason) == ("day", "1.50", "INC-8")
    assert (month.limit, str(month.by), month.reason) == ("cost-month", "70", "INC-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "0"}, "--by 0: give an amount above 0"),
        ({"by": "much"}, "--by much: give an amount above 0"),
        ({"until": "2027-11-20T12:00:00Z"}, "a raise always ends"),
        ({"reason": ""}, "--reason: give 1 to 256 characters"),
    ],
)
def test_a_raise_without_an_amount_an_end_or_a_reason_is_refused(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        parse_raise(the_options(**changes), NOW)


async def test_only_a_limit_of_the_budget_can_be_raised() -> None:
    api = MemoryApi(a_cluster_with_limits()[0])
    requested = parse_raise(the_options(limit="charge-month"), NOW)
    with pytest.raises(CommandError, match=r"has no limit charge-month; its limits are .*, day"):
        await raise_limit(Reader(api), "team-a", requested, NOW, "text")
    with pytest.raises(CommandError, match="TenantBudget/team-b not found"):
        await raise_limit(Reader(api), "team-b", requested, NOW, "text")


async def test_a_malformed_annotation_raises_nothing() -> None:
    cluster, key = a_cluster_with_limits(**{RAISES_ANNOTATION: '[{"limit": "day"}]'})
    assert parse_own(TENANT_BUDGETS, cluster.objects[key]).raises == ()
