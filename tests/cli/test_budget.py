"""`tessera budget override` over an in-memory cluster."""

import json
from datetime import timedelta

import pytest

from tessera.adapters.kube.object_parsing import parse_budget
from tessera.cli.budget.command import override, parse_override
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError, DeniedError
from tessera.resources.api_resources import TENANT_BUDGETS
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
    assert parse_budget(cluster.objects[key]).override == requested
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
