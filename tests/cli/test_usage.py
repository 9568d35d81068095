"""`tessera usage` against the port of a gateway with a real store."""

import csv
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import click
import pytest
from aiohttp.test_utils import TestServer

from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError
from tessera.cli.gateway_port import get
from tessera.cli.main import main
from tessera.cli.usage.arguments import USAGE
from tessera.cli.usage.command import UsageTable, output, parse_fields
from tessera.cli.usage.import_job import import_job
from tessera.domain.gateway.usage_record import USAGE_COLUMNS, Phase
from tessera.domain.names import APP_NAME
from tessera.gateway.fleet.other_gateways import OtherGateways
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.metrics import GatewayMetrics, ServiceRequests
from tessera.ports import ClusterError
from tessera.resources.api_resources import CLAIMS, DEPLOYMENTS, PODS
from tests.gateway.store.builders import a_record

PAGE = Path(__file__).parents[2] / "docs" / "tasks" / "usage.md"
NAMESPACE = "tessera-system"
READER = "system:serviceaccount:tessera-system:tessera-usage-reader"
UNTIL = datetime(2026, 11, 20, 12, tzinfo=UTC)
SINCE = UNTIL - timedelta(days=1)
USERS = {"reader": READER, "other": "system:serviceaccount:team-a:tessera-usage-reader"}
QUERY = {"by": "tenant,key,model", "since": SINCE.isoformat(), "until": UNTIL.isoformat()}


@dataclass
class TokenApi:
    """An API server that makes tokens."""

    status: int = 201
    token: str = "reader"  # noqa: S105 - a name

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        del query, content_type
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/tessera-usage-reader/token"
        assert (method, path) == ("POST", account)
        assert body is not None
        assert body["spec"]["audiences"] == ["tessera-usage-reader"]
        return self.status, {"status": {"token": self.token}, "message": "because"}


async def no_pods() -> Mapping[str, str]:
    return {}


NO_OTHERS = OtherGateways(no_pods, 0)


async def review(token: str) -> str | None:
    if token == "unreachable":  # noqa: S105 - a name
        raise ClusterError("the API server does not answer")
    return USERS.get(token)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[str]:
    """Serve the records of a day and return the URL."""
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    at = int((UNTIL - timedelta(hours=1)).timestamp()) * 10**9
    laptop = {"started_at_ns": at, "input_tokens": 1200, "cached_tokens": 800, "output_tokens": 250}
    await store.record(
        [
            *(a_record(**laptop) for _ in range(3)),
            a_record(**laptop, phase=Phase.ABORTED, estimated=True),
            a_record(**laptop, tenant="team-b", key=None, model="qwen"),
            a_record(started_at_ns=at - 10**9 * 86_400),
        ]
    )
    load = {"team-a/chat": ServiceRequests(in_flight=2)}
    requests: Any = None
    api = InternalApi(
        GatewayMetrics(), store, review, NAMESPACE, lambda: load, requests, others=NO_OTHERS
    )
    async with TestServer(api.application()) as server:
        yield str(server.make_url("/"))
    await store.close()


async def usage(gateway: str, **query: str) -> UsageTable:
    answer = await get(Reader(TokenApi()), NAMESPACE, f"{gateway}usage", QUERY | query)
    return UsageTable(QUERY["by"].split(","), SINCE, UNTIL, answer)


async def test_the_table_stands_on_the_page(gateway: str) -> None:
    text = output(await usage(gateway), "table").text

    assert text in PAGE.read_text(encoding="utf-8")


async def test_json_and_csv_have_every_count(gateway: str) -> None:
    answer = await usage(gateway, tenant="team-a")

    body = json.loads(output(answer, "json").text)
    assert body == {
        "groupBy": ["tenant", "key", "model"],
        "from": SINCE.isoformat(),
        "to": UNTIL.isoformat(),
        "rows": [
            {
                "tenant": "team-a",
                "key": "laptop",
                "model": "llama",
                "requests": 4,
                "failed": 0,
                "aborted": 1,
                "estimated": 1,
                "inputTokens": 4800,
                "cachedTokens": 3200,
                "outputTokens": 1000,
                "reasoningTokens": 20,
            }
        ],
        "truncated": False,
        "oldest": "2026-11-19T11:00:00+00:00",
    }
    (row,) = csv.DictReader(io.StringIO(output(answer, "csv").text))
    assert (row["model"], row["inputTokens"], row["to"]) == ("llama", "4800", UNTIL.isoformat())


async def test_targets_have_their_share_of_the_requests_of_a_tenant_a_team_and_a_tag(
    tmp_path: Path,
) -> None:
    """Nobody is quietly worse off: who gets the smaller model, and how often."""
    routed: dict[str, Any] = {
        "started_at_ns": int((UNTIL - timedelta(hours=1)).timestamp()) * 10**9,
        "model_route": "team-a/assistant",
    }
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    await store.record(
        [
            *(a_record(**routed, target="small", tags="app=chat") for _ in range(3)),
            a_record(**routed, target="large", tags="app=chat"),
            a_record(**routed, target="large", team="legal"),
            a_record(**routed, target="small", team="legal", requests=0),
        ]
    )
    unused: Any = None
    api = InternalApi(GatewayMetrics(), store, review, NAMESPACE, dict, unused, others=NO_OTHERS)
    by = parse_fields("team,tag,target")
    async with TestServer(api.application()) as server:
        url = str(server.make_url("/usage"))
        answer = await get(Reader(TokenApi()), NAMESPACE, url, QUERY | {"by": ",".join(by)})
    await store.close()

    table = UsageTable(by, SINCE, UNTIL, answer)
    rows = csv.DictReader(io.StringIO(output(table, "csv").text))
    shares = {(row["team"], row["tag"], row["target"]): row["share"] for row in rows}
    assert shares == {
        ("", "app=chat", "small"): "0.75",
        ("", "app=chat", "large"): "0.25",
        ("legal", "", "large"): "1.0",
        ("legal", "", "small"): "0.0",
    }
    assert output(table, "table").text.splitlines()[1].endswith("75.0%")
    cut = UsageTable(by, SINCE, UNTIL, {**answer, "truncated": True})
    assert {row["share"] for row in json.loads(output(cut, "json").text)["rows"]} == {None}


async def test_a_period_that_begins_before_the_oldest_record_says_so(gateway: str) -> None:
    """A tenant without usage, and a question about more than the database has."""
    since = SINCE - timedelta(days=1)
    answer = await get(
        Reader(TokenApi()),
        NAMESPACE,
        f"{gateway}usage",
        QUERY | {"since": since.isoformat(), "tenant": "team-c"},
    )

    text = output(UsageTable(("tenant",), since, UNTIL, answer), "table").text

    assert text == (
        "No usage from 2026-11-18 12:00:00 to 2026-11-20 12:00:00 UTC.\n"
        "The database has no records from before 2026-11-19 11:00:00 UTC.\n"
    )


def test_a_new_database_says_that_it_is_empty() -> None:
    answer = {"rows": [], "truncated": False, "oldest": None}

    text = output(UsageTable(("tenant",), SINCE, UNTIL, answer), "table").text

    assert text == (
        "No usage from 2026-11-19 12:00:00 to 2026-11-20 12:00:00 UTC.\n"
        "The database has no records at all. Another one begins empty: tessera usage import adds "
        "those of a SQLite file.\n"
    )


@pytest.mark.parametrize(
    ("api", "message"),
    [
        (TokenApi(status=404), "ServiceAccount/tessera-usage-reader is not in namespace"),
        (TokenApi(status=403), "no token of ServiceAccount/tessera-usage-reader .* because"),
        (TokenApi(token="other"), "403: system:serviceaccount:team-a"),  # noqa: S106 - a name
        (TokenApi(token="stranger"), "401: no token for tessera-usage-reader"),  # noqa: S106
        (TokenApi(token="unreachable"), "503: the API server does not answer"),  # noqa: S106
    ],
)
async def test_only_a_token_of_the_reader_in_the_namespace_of_the_gateway_reads_usage(
    gateway: str, api: TokenApi, message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        await get(Reader(api), NAMESPACE, f"{gateway}usage", QUERY)


@pytest.mark.parametrize(
    "query", [{"by": "prompt"}, {"by": ""}, {"since": "soon"}, {"until": "2026-11-20T12:00:00"}]
)
async def test_a_query_that_cannot_be_answered_says_what_can(
    gateway: str, query: dict[str, str]
) -> None:
    with pytest.raises(CommandError, match=r"400: query: .*; by is a list of tenant, team"):
        await get(Reader(TokenApi()), NAMESPACE, f"{gateway}usage", QUERY | query)


async def test_without_a_token_only_the_metrics_are_served(gateway: str) -> None:
    async with aiohttp.ClientSession(gateway) as session:
        async with session.get("usage", params=QUERY) as response:
            assert (response.status, await response.json()) == (401, {"error": "no bearer token"})
        async with session.get("metrics") as response:
            page = await response.text()
    assert 'tessera_gateway_requests_in_flight{service="team-a/chat"} 2.0' in page


def test_the_options_and_the_page_name_every_dimension() -> None:
    (by,) = (each for each in USAGE.params if isinstance(each, click.Option) and each.name == "by")
    options = (by.help or "").partition(";")[0].removeprefix("rows: a list of ").split(", ")
    assert sorted(options) == sorted(USAGE_COLUMNS)
    listed = PAGE.read_text(encoding="utf-8").partition("`--by` takes any of ")[2].partition(";")[0]
    assert sorted(re.findall("`(.*?)`", listed)) == sorted(USAGE_COLUMNS)


def test_fields_are_checked_before_anything_is_asked() -> None:
    assert parse_fields("tenant,key,tenant") == ("tenant", "key")
    with pytest.raises(CommandError, match="--by tenant,cost: there is no cost; choose of tenant"):
        parse_fields("tenant,cost")
    assert parse_fields("team,target") == ("team", "route", "target")
    assert parse_fields("target,route") == ("route", "target")


def test_the_command_says_how_to_reach_the_gateway(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESSERA_GATEWAY_URL", raising=False)
    with pytest.raises(SystemExit, match="port-forward deploy/tessera-gateway 8080"):
        main(["usage"])
    assert capsys.readouterr().out == ""


@dataclass
class ImportApi:
    """An API server with a gateway, a claim and a pod."""

    deployment: dict[str, Any] | None
    claim: str = "tessera-gateway"
    phase: str = "Succeeded"

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        del query, body, content_type
        assert method == "GET"
        volume = {"name": "state", "persistentVolumeClaim": {"claimName": "tessera-gateway"}}
        pod = {
            "metadata": {"name": "tessera-gateway-0"},
            "spec": {"volumes": [{"name": "tmp", "emptyDir": {}}, volume]},
            "status": {"phase": self.phase},
        }
        answer = {
            DEPLOYMENTS.path(NAMESPACE, "tessera-gateway"): self.deployment,
            CLAIMS.path(NAMESPACE, self.claim): {},
            PODS.path(NAMESPACE): {"items": [pod], "metadata": {}},
        }.get(path)
        return (404, {"message": "not found"}) if answer is None else (200, answer)


def a_deployment(*variables: str) -> dict[str, Any]:
    container = {
        "name": "gateway",
        "image": "registry.example.org/tessera/gateway:1",
        "args": ["--host", "::"],
        "env": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "database", "key": "url"}}}
            for name in variables
        ],
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/tessera"}],
    }
    pod = {
        "containers": [container],
        "serviceAccountName": "tessera-gateway",
        "securityContext": {"runAsUser": 65532},
    }
    return {"spec": {"template": {"spec": pod}}}


async def test_an_import_is_a_job_of_the_gateway_that_reads_the_claim_and_knows_the_secret() -> (
    None
):
    api = ImportApi(a_deployment("TESSERA_DATABASE_URL"))

    job = await import_job(Reader(api), NAMESPACE, "tessera-gateway")

    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    gateway = a_deployment("TESSERA_DATABASE_URL")["spec"]["template"]["spec"]
    for name in ("image", "env", "securityContext"):
        assert container[name] == gateway["containers"][0][name]
    assert pod["securityContext"] == gateway["securityContext"]
    assert "args" not in container
    (mount,) = container["volumeMounts"]
    assert mount["readOnly"]
    assert container["command"][-1] == f"{mount['mountPath']}/store.db"
    (volume,) = pod["volumes"]
    assert volume == {
        "name": mount["name"],
        "persistentVolumeClaim": {"claimName": "tessera-gateway"},
    }
    # Otherwise the Service of the gateway would send it requests.
    assert job["spec"]["template"]["metadata"]["labels"][APP_NAME] == "tessera-usage-import"


@pytest.mark.parametrize(
    ("api", "message"),
    [
        (ImportApi(None), "Deployment/tessera-gateway is not in namespace tessera-system"),
        (ImportApi(a_deployment()), "still records in its SQLite file: set gateway.database"),
        (
            ImportApi(a_deployment("TESSERA_DATABASE_URL"), claim="other"),
            "PersistentVolumeClaim/tessera-gateway is not in namespace",
        ),
        (
            ImportApi(a_deployment("TESSERA_DATABASE_URL"), phase="Running"),
            "Pod/tessera-gateway-0 uses PersistentVolumeClaim/tessera-gateway",
        ),
    ],
)
async def test_an_import_that_cannot_be_complete_says_why(api: ImportApi, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        await import_job(Reader(api), NAMESPACE, "tessera-gateway")
