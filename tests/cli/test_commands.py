"""`tessera explain`, `top` and `update` over an in-memory cluster."""

import json
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.service_status import EnergyStatus
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.explain.command import _route as explain_route_command
from tessera.cli.explain.command import (
    explanation,
    load_curve,
    of_service,
    route_explanation,
    slow_start_log,
)
from tessera.cli.fleet import read_fleet
from tessera.cli.top.command import report_lines
from tessera.cli.top.rows import pools_json, route_rows, service_rows
from tessera.cli.update.command import update
from tessera.domain.kinds.kinds import MODEL_ROUTES
from tessera.domain.names import UPDATE_ANNOTATION
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.energy import EnergySource, ServiceEnergy
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import PodReading, Readings, Ref
from tessera.domain.routes.savings import RouteUse
from tessera.ports import ClusterError
from tessera.resources.api_resources import PODS
from tests.builders import NOW, a_speed_reading
from tests.cli.memory_api import MemoryApi, a_pod_body, a_served_cluster
from tests.domain.slo.latencies import engine_latency, gateway_latency
from tests.memory_operator import CHAT

TEAM_CHAT = Ref("team-a", "chat")


async def explain_text(api: MemoryApi, ref: Ref = TEAM_CHAT, form: str = "text") -> str:
    reader = Reader(api, ref.namespace)
    return explanation(replace(await read_fleet(reader, None), at=NOW), ref, form).text


@pytest.mark.parametrize(
    ("service", "namespace", "expected"),
    [
        ("team-a/chat", None, ("team-a", "chat")),
        ("team-a/chat", "team-b", ("team-a", "chat")),
        ("chat", "team-b", ("team-b", "chat")),
        ("chat", None, (None, "chat")),
    ],
)
def test_a_service_is_named_as_commands_print_it(
    service: str, namespace: str | None, expected: tuple[str | None, str]
) -> None:
    given = SimpleNamespace(service=service, namespace=namespace, output="text")
    arguments = of_service(given)
    assert (arguments.namespace, arguments.service) == expected
    assert arguments.output == "text"


async def test_a_service_is_explained_in_lines() -> None:
    _, api = await a_served_cluster()
    text = await explain_text(api)
    for line in (
        "ACCEPTED: Valid since 2026-11-20 12:00:00",
        "PLACED: Placed since 2026-11-20 12:00:00",
        "    a100-1g-10gb  0.2679 USD  chosen",
        "SIZING: Fits",
        "BUDGET: NoBudget",
        "READY: CompletionSucceeded since 2026-11-20 12:00:00",
    ):
        assert line in text.splitlines()
    assert "pass --prometheus URL" in text
    assert api.sent == []


@dataclass
class MemoryLogs:
    """Answers with the same log, or refuses or fails to; `asked` are the pods."""

    log: str | None
    fails: bool = False
    asked: list[Ref] = field(default_factory=list)

    async def pod_log(self, pod: Ref, container: str, limit_bytes: int) -> str | None:
        assert (container, limit_bytes) == ("engine", 2**20)
        self.asked.append(pod)
        if self.fails:
            raise ClusterError("no response")
        return self.log


@pytest.mark.parametrize(
    ("image", "logs", "asked", "shown"),
    [
        (600, MemoryLogs("Model loading took 1.2 GiB memory and 83.4 seconds"), True, True),
        (600, MemoryLogs(None), True, False),
        (600, MemoryLogs(None, fails=True), True, False),
        (20, MemoryLogs("Model loading took 1.2 GiB memory and 83.4 seconds"), False, False),
    ],
    ids=["slow", "denied", "unreachable", "fast"],
)
async def test_the_log_of_a_slow_start_is_read_with_the_rights_of_the_user(
    image: int, logs: MemoryLogs, *, asked: bool, shown: bool
) -> None:
    operator, api = await a_served_cluster()
    operator.body(CHAT)["status"]["start"] = {
        "pod": "chat-0",
        "variant": "a100-1g-10gb",
        "createdAt": "2026-11-20T11:00:00Z",
        "seconds": image + 95,
        "scheduleSeconds": 5,
    }
    reader = Reader(api, "team-a", logs)
    fleet = replace(await read_fleet(reader, None), at=NOW)
    text = explanation(
        fleet, TEAM_CHAT, "text", await slow_start_log(reader, fleet, TEAM_CHAT)
    ).text
    assert logs.asked == ([Ref("team-a", "chat-0")] if asked else [])
    assert ("load 83 s, by the log of chat-0" in text) is shown


async def test_json_has_the_same() -> None:
    _, api = await a_served_cluster()
    body = json.loads(await explain_text(api, form="json"))
    topics = {decision["topic"]: decision for decision in body["decisions"]}
    assert topics["placed"]["reason"] == "Placed"
    assert topics["placed"]["numbers"]["price per replica"] == "0.2679 USD per hour"
    assert topics["scaling"]["wouldChange"]
    assert topics["ready"]["since"] == "2026-11-20T12:00:00+00:00"


async def test_without_rights_only_the_status_is_explained_and_a_note_says_so() -> None:
    _, api = await a_served_cluster()
    api.denied = {"inferenceservices", "pods"}
    api.hidden = {"nodes", "acceleratorpools"}
    text = await explain_text(api)
    assert "since reads failed: permission denied: list inferenceservices in all" in text
    assert "READY: CompletionSucceeded" in text
    assert "SIZING" not in text


async def test_a_user_who_may_not_list_services_gets_an_error() -> None:
    _, api = await a_served_cluster()
    api.hidden = {"inferenceservices"}
    with pytest.raises(DeniedError, match="permission denied: list inferenceservices"):
        await explain_text(api)


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        (Ref("team-a", "caht"), "did you mean chat"),
        (Ref("team-b", "chat"), "did you mean team-a/chat"),
        (Ref("team-b", "other"), "kubectl get tsvc -A"),
    ],
)
async def test_an_unknown_service_is_answered_with_near_names(ref: Ref, hint: str) -> None:
    _, api = await a_served_cluster()
    with pytest.raises(CommandError, match=hint):
        await explain_text(api, ref)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"problem": "connection refused"}, "kubectl cluster-info"),
        ({"status": 401}, "log in to the cluster"),
        ({"status": 500}, "API server returned 500: so it is"),
        ({"unknown": {"inferenceservices"}}, "install Tessera in this"),
    ],
)
async def test_what_the_api_server_refuses_is_a_sentence(
    fields: dict[str, object], words: str
) -> None:
    _, api = await a_served_cluster()
    for name, value in fields.items():
        setattr(api, name, value)
    with pytest.raises(CommandError, match=words):
        await explain_text(api)


async def test_top_has_the_price_the_load_and_the_free_devices() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    (quiet,) = service_rows(fleet.snapshot, None, {}, None)
    assert (quiet.per_hour, quiet.ready_replicas, quiet.desired_replicas) == (
        Decimal("0.5357"),
        2,
        2,
    )
    assert (quiet.tokens_per_second, quiet.waiting_requests, quiet.reason) == (
        None,
        None,
        "FailedGetMetrics",
    )
    assert quiet.predicted_tokens_per_second is not None
    assert quiet.predicted_tokens_per_second > 1000
    readings = {Ref("team-a", f"chat-{index}"): PodReading(waiting=4, activity=0.5)
                for index in range(2)}  # fmt: skip
    read = replace(fleet, readings=Readings(at=NOW, pods=readings))
    rates, shares = {TEAM_CHAT: 1000.0}, {TEAM_CHAT: 0.41}
    (busy,) = service_rows(read.snapshot, None, rates, "team-a", shares)
    assert (busy.tokens_per_second, busy.waiting_requests, busy.activity) == (1000.0, 8.0, 0.5)
    assert (quiet.cached_share, busy.cached_share) == (None, 0.41)
    assert busy.per_million_tokens == Decimal("0.1488")  # 0.5357 for 3.6 million tokens
    assert service_rows(read.snapshot, None, {}, "team-b") == []
    (pool,) = pools_json(fleet.snapshot)
    assert pool["devices"] == {"1g.10gb": {"free": 5, "allocatable": 7}}


async def test_a_route_is_explained_in_each_form_and_by_a_known_name() -> None:
    status = {"targets": [{"name": "small", "service": "team-a/small", "reason": "Available"}]}
    metadata = {"name": "assistant", "namespace": "team-a", "uid": "r", "generation": 1}
    metadata["creationTimestamp"] = "2026-11-20T11:00:00Z"
    body = {
        "metadata": metadata,
        "spec": {"targets": [{"service": "small"}]},
        "status": status,
    }
    route = parse_own(MODEL_ROUTES, body)
    use = RouteUse(requests={"small": 3})
    text = route_explanation(route, [use], NOW, "no prices", "text").text
    assert text.startswith(f"ModelRoute/team-a/assistant at {NOW:%Y-%m-%d}")
    assert "Note: no prices" in text
    assert "small     team-a/small: Available, 100.0% of the requests" in text
    known = json.loads(route_explanation(route, [use], NOW, "", "json").text)
    assert (known["route"], known["notes"]) == ("assistant", [])
    assert [each["topic"] for each in known["decisions"]] == ["accepted", "selection"]

    _, api = await a_served_cluster()
    api.pages[MODEL_ROUTES.path("team-a")] = {"items": [body], "metadata": {}}
    command: Any = explain_route_command
    for name in ("assistant", "assistent"):
        arguments = SimpleNamespace(request_id=name, prometheus=None, output="text")
        answer = command.__wrapped__(Reader(api, "team-a"), arguments)
        if name == "assistant":
            assert "needs --prometheus URL" in (await answer).text
            continue
        with pytest.raises(CommandError, match="not found in team-a; there is assistant"):
            await answer


def test_top_has_what_routes_answered_and_saved() -> None:
    use = RouteUse(
        requests={"small": 3, "large": 1},
        fallbacks=1,
        currency="USD",
        tokens={"small": 3e6, "large": 1e6},
        charges={"small": 6e8, "large": 8e8},
        at_last=32e8,
    )
    uses = {"team-a/assistant": (use,), "team-b/other": (RouteUse(requests={"a": 1}),)}
    row, other = route_rows({**uses, "team-a/idle": (RouteUse(requests={"a": 0}),)}, None)
    assert dict(row.shares) == {"large": 0.25, "small": 0.75}
    assert (row.fallback_share, row.per_million_tokens) == (0.25, Decimal("0.3500"))
    assert (row.last_per_million_tokens, row.saved) == (Decimal("0.8000"), 1 - 0.35 / 0.8)
    assert (other.currency, other.saved) == (None, None)
    assert [each.route for each in route_rows(uses, "team-b")] == ["other"]
    lines = list(report_lines([], [row, other], [], []))
    assert lines[3].split()[1:] == [
        *("large", "25%,", "small", "75%", "25.0%", "0.3500", "USD", "0.8000", "USD", "56.2%")
    ]
    assert lines[4].split()[-3:] == ["-", "-", "-"]


async def test_top_has_the_energy_of_a_token_by_prometheus_before_the_status() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    [service] = fleet.snapshot.services
    reported = EnergyStatus(source="Model", joules_per_token=Decimal("0.5"))
    status = service.status.model_copy(update={"energy": reported})
    snapshot = replace(fleet.snapshot, services=(replace(service, status=status),))
    measured = ServiceEnergy(joules=600, source=EnergySource.MEASURED, output_tokens=2000)
    read = replace(snapshot, readings=Readings(at=NOW, energies={TEAM_CHAT: measured}))
    energies = [
        service_rows(each, None, {}, None)[0].joules_per_token
        for each in (fleet.snapshot, snapshot, read)
    ]
    assert energies == [None, 0.5, 0.3]


async def test_top_counts_what_waits_at_gateways() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    queued = replace(fleet, demand={TEAM_CHAT: GatewayDemand(queued=61)})
    (unread,) = service_rows(queued.snapshot, None, {}, None)
    assert unread.waiting_requests == 61
    pods = {Ref("team-a", f"chat-{index}"): PodReading(waiting=1) for index in range(2)}
    read = replace(queued, readings=Readings(at=NOW, pods=pods))
    (row,) = service_rows(read.snapshot, None, {}, None)
    assert row.waiting_requests == 63


async def test_explain_does_without_a_load_that_prometheus_does_not_tell() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    nowhere = "http://127.0.0.1:9"
    assert await load_curve(fleet, TEAM_CHAT, None) is None
    failed = replace(fleet, readings=Readings(at=NOW, problem="no answer"))
    assert await load_curve(failed, TEAM_CHAT, nowhere) is None
    read = replace(fleet, readings=Readings(at=NOW))
    assert await load_curve(read, TEAM_CHAT, nowhere) is None
    assert await load_curve(read, Ref("team-a", 'x"'), nowhere) is None


async def test_explain_takes_arrivals_from_where_the_operator_does() -> None:
    spec = {"scaling": {"policy": "Capacity", "minReplicas": 2}}
    _, api = await a_served_cluster(**spec)
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    pods = {
        Ref("team-a", f"chat-{index}"): PodReading(waiting=0, running=1, activity=0.5)
        for index in range(2)
    }
    read = replace(fleet, readings=Readings(at=NOW, pods=pods, finish_rates={TEAM_CHAT: 0.2}))
    assert "requests/s estimated from the engines" in explanation(read, TEAM_CHAT, "text").text
    demand = {TEAM_CHAT: GatewayDemand(in_flight=2, arrivals_per_second=0.25)}
    text = explanation(replace(read, demand=demand), TEAM_CHAT, "text").text
    assert "0.25 requests/s at the gateway" in text


async def test_top_counts_devices_of_unmanaged_pods_as_used_and_names_the_pods() -> None:
    operator, api = await a_served_cluster()
    notebook = a_pod_body("notebook")
    del notebook["metadata"]["ownerReferences"]
    operator.cluster.put(PODS, notebook)
    (pool,) = pools_json((await read_fleet(Reader(api), None)).snapshot)
    assert pool["devices"] == {"1g.10gb": {"free": 4, "allocatable": 7}}
    assert pool["unmanagedPods"] == ["team-a/notebook"]


async def test_top_and_explain_have_both_speeds_of_the_load_that_is_seen() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    reading = a_speed_reading(itl_seconds=0.0123, median_itl_seconds=0.013)
    readings = Readings(at=NOW, speeds={TEAM_CHAT: (reading,)}, speeds_at=NOW)
    read = replace(fleet, readings=readings)
    (row,) = service_rows(read.snapshot, read.compute_plan(read.snapshot), {}, None)
    assert row.itl_ms == pytest.approx(12.3)
    assert row.predicted_itl_ms is not None
    text = explanation(read, TEAM_CHAT, "text").text
    assert "SPEED: " in text
    predicted = f"12.3 ms, {row.predicted_itl_ms:.1f} ms predicted for a mean batch size of 8.0"
    assert predicted in text
    assert "between 10 and 25 ms" in text
    assert "120000 reported by the engine" in text


async def test_top_and_explain_have_what_is_attained_now_and_the_edges_of_the_engines() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    latency = ServiceLatency(
        engines=(engine_latency(fast=0.4, slow=0.99),),
        gateway=gateway_latency(requests=20, overdue=3),
    )
    read = replace(fleet, readings=Readings(at=NOW, latencies={TEAM_CHAT: latency}))
    (row,) = service_rows(read.snapshot, read.compute_plan(read.snapshot), {}, None)
    assert row.slo == "~58.8 %"
    text = explanation(read, TEAM_CHAT, "text").text
    assert "SLO: NoTraffic" in text
    assert "95% within 33ms, engines count at 25 ms and 50 ms" in text
    assert "95% within 1s, an edge of the engines' buckets" in text
    assert "between 40.0 % and 99.0 %, 58.8 % interpolated, of 30000 tokens at the engine" in text
    assert "3 requests without a first token" not in text
    through = replace(latency, gateway=gateway_latency(overdue=3, itl=0.97))
    read = replace(fleet, readings=Readings(at=NOW, latencies={TEAM_CHAT: through}))
    text = explanation(read, TEAM_CHAT, "text").text
    assert "3 requests without a first token" in text
    assert "97.0 % of 30000 tokens at the gateway" in text


@pytest.mark.parametrize(
    ("burn", "expected"),
    [(0.384, "61.6 % of 3 days left"), (1.8, "used up: 1.8 times the misses that 3 days allow")],
)
async def test_explain_says_what_is_left_of_the_error_budget(burn: float, expected: str) -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    latency = ServiceLatency(engines=(engine_latency(),), budget_burn=burn)
    read = replace(fleet, readings=Readings(at=NOW, latencies={TEAM_CHAT: latency}))
    text = explanation(read, TEAM_CHAT, "text").text
    assert re.search(rf"error budget +{re.escape(expected)}", text)


async def test_explain_says_what_each_variant_attains_while_there_are_two() -> None:
    _, api = await a_served_cluster()
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    old = replace(engine_latency(ttft=0.5), variant="old")
    latency = ServiceLatency(engines=(engine_latency(), old))
    read = replace(fleet, readings=Readings(at=NOW, latencies={TEAM_CHAT: latency}))
    text = explanation(read, TEAM_CHAT, "text").text
    assert re.search(r"TTFT attained of old +50.0 % of 300 requests at the engine", text)
    assert re.search(r"TTFT attained +75.0 % of 600 requests at the engine", text)


async def test_what_costs_most_comes_first() -> None:
    operator, api = await a_served_cluster()
    operator.serve("large", replicas=4)
    operator.serve("small", replicas=1)
    await operator.reconcile()
    rows = service_rows((await read_fleet(Reader(api), None)).snapshot, None, {}, None)
    assert [row.service for row in rows] == ["large", "chat", "small"]


def update_available(body: dict[str, object]) -> None:
    condition = {"type": "UpdateAvailable", "status": "True", "message": "builder 2 instead of 1"}
    body["status"]["conditions"].append(condition)  # type: ignore[index]


async def test_an_update_is_requested_by_the_annotation() -> None:
    operator, api = await a_served_cluster()
    update_available(operator.body(CHAT))
    text = (await update(Reader(api, "team-a"), TEAM_CHAT, "text")).text
    assert "builder 2 instead of 1" in text
    ((method, path, patch),) = api.sent
    assert (method, path) == (
        "PATCH",
        "/apis/tessera.dev/v1alpha1/namespaces/team-a/inferenceservices/chat",
    )
    annotation = patch["metadata"]["annotations"][UPDATE_ANNOTATION]
    assert datetime.fromisoformat(annotation).tzinfo is not None


@pytest.mark.parametrize(
    ("reason", "asks"), [("RevisionResolved", True), ("CommitSpecified", False)]
)
async def test_a_hub_is_asked_again_where_a_branch_may_mean_another_commit(
    reason: str, asks: bool
) -> None:
    operator, api = await a_served_cluster()
    model = {"uri": "hf://acme/one", "requestedRevision": "main", "reason": reason}
    operator.body(CHAT)["status"]["model"] = model
    text = (await update(Reader(api, "team-a"), TEAM_CHAT, "text")).text
    assert ("the commit of main of hf://acme/one" in text, bool(api.sent)) == (asks, asks)


async def test_without_an_available_update_nothing_is_written() -> None:
    _, api = await a_served_cluster()
    output = await update(Reader(api, "team-a"), TEAM_CHAT, "json")
    assert json.loads(output.text)["requestedAt"] is None
    assert "no update available" in output.text
    assert (output.exit_code, api.sent) == (0, [])


async def test_an_update_without_rights_or_of_nothing_is_a_sentence() -> None:
    operator, api = await a_served_cluster()
    update_available(operator.body(CHAT))
    with pytest.raises(CommandError, match="did you mean chat"):
        await update(Reader(api, "team-a"), Ref("team-a", "chta"), "text")
    api.denied = {"inferenceservices"}
    with pytest.raises(DeniedError, match="permission denied: patch team-a/chat"):
        await update(Reader(api, "team-a"), TEAM_CHAT, "text")
