"""A set of calls of commands on fixed inputs, each with all that it prints."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import click

from tessera.cli.breakeven.arguments import BREAKEVEN
from tessera.cli.breakeven.command import build_request
from tessera.cli.breakeven.report import draw
from tessera.cli.breakeven.report import output as breakeven_output
from tessera.cli.cluster import Reader
from tessera.cli.commands import root_command
from tessera.cli.cost.report import CostReport
from tessera.cli.cost.report import output as cost_output
from tessera.cli.doctor.command import as_json, report_lines, run_checks
from tessera.cli.errors import CommandError
from tessera.cli.explain.command import explanation
from tessera.cli.explain.request import report as request_report
from tessera.cli.fleet import FleetInputs, read_fleet
from tessera.cli.forecast.arguments import FORECAST
from tessera.cli.forecast.command import run as run_forecast
from tessera.cli.key.arguments import KEY_CREATE, KEY_LIST
from tessera.cli.key.create import create
from tessera.cli.key.list_keys import list_keys
from tessera.cli.main import main
from tessera.cli.mosaic.command import render_mosaic
from tessera.cli.options import COST_FORMATS, OUTPUT_FORMATS
from tessera.cli.output import Output
from tessera.cli.plan.arguments import PLAN
from tessera.cli.plan.command import render_plans
from tessera.cli.plan.command import run as run_plan
from tessera.cli.size.arguments import SIZE
from tessera.cli.size.command import build_report
from tessera.cli.size.report import output as size_output
from tessera.cli.size.request import size_request
from tessera.cli.snapshot.file import save, serialize
from tessera.cli.snapshot.plan import run as run_snapshot_plan
from tessera.cli.top.command import _services as top_command
from tessera.cli.top.requests import report_lines as request_lines
from tessera.cli.top.rows import pools_json, service_rows
from tessera.cli.usage.command import UsageTable
from tessera.cli.usage.command import output as usage_output
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.energy import Energy, EnergyLine, IdleGPU
from tessera.domain.cost.energy_statement import EnergyStatement
from tessera.domain.cost.energy_windows import EnergySplit
from tessera.domain.cost.statement import Amounts, Statement
from tessera.domain.explain.request import JoinedExplanations
from tessera.domain.observed.energy import EnergySource
from tessera.domain.observed.snapshot import PodReading, Readings, Ref
from tests.builders import NOW, dollars
from tests.cli.check_contexts import a_check_context
from tests.cli.memory_api import MemoryApi, a_served_cluster
from tests.cli.partitioned_cluster import (
    PRODUCT,
    a_partitioned_cluster,
    a_plan,
    a_slice,
    put_layout,
    put_node,
)
from tests.cli.test_key import SecretsApi
from tests.memory_cluster import MemoryCluster

# The width of help.
COLUMNS = "100"
Calls = Iterator[tuple[str, str]]
DAY = date(2026, 11, 20)
_AT = datetime(2026, 11, 26, tzinfo=UTC)
LLAMA, BGE = "meta-llama/Llama-3.1-8B-Instruct", "BAAI/bge-m3"
A100, H100 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-H100-80GB-HBM3"


def shown(call: Callable[[], Output]) -> str:
    """Return exit code and text of a call, or the sentence in which it fails."""
    try:
        output = call()
    except CommandError as error:
        return f"error: {error}"
    return f"{output.exit_code}\n{output.text}"


async def call_texts(folder: Path) -> Mapping[str, str]:
    """Return what the calls of each command show, each below its words."""
    texts: dict[str, str] = {}
    shown_by: dict[str, str] = {}
    for words, text in (await played(folder)).items():
        command = re.sub(r"\W", "", words.split()[0])
        same = shown_by.setdefault(text, words)
        shown = text if same == words else f"as {same}"
        texts[command] = f"{texts.get(command, '')}=== {words}\n{shown.rstrip()}\n"
    return texts


async def played(folder: Path) -> dict[str, str]:
    """Return what every call shows, by the words of the call."""
    calls: dict[str, str] = {}
    for part in (_helps(), _sizes(folder), _break_evens(), _forecasts(folder), _costs(), _usages()):
        calls |= part
    for name, text in _plans_of_files(folder):
        calls[name] = text
    calls |= {name: text async for name, text in _layouts(folder)}
    calls |= {name: text async for name, text in _clusters(folder)}
    return calls


def _helps() -> Calls:
    def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from commands(inner, (*words, name))

    for words in commands(root_command(()), ()):
        for tail in (("--help",), ("--no-such-option",)):
            text = io.StringIO()
            try:
                with redirect_stderr(text), redirect_stdout(text):
                    main([*words, *tail], text)
            except SystemExit as error:
                print(error.code, file=text)
            yield " ".join((*words, *tail)), text.getvalue()


def _sizes(folder: Path) -> Calls:
    prices = folder / "prices.json"
    entry = {"product": H100, "from": "2026-01-01", "perGPUHour": "2.95"}
    prices.write_text(json.dumps({"prices": [entry]}), encoding="utf-8")
    for words in (
        (LLAMA, "--gpu", f"{A100},{H100}"),
        (LLAMA, "--gpu", A100, "--slo", "ttft=1s,itl=15ms", "--compare"),
        (LLAMA, "--gpu", H100, "--api-price", "0.9", "--prices", str(prices)),
        (LLAMA, "--prices", str(prices)),
        (LLAMA, "--tensor-parallel", "2", "--gpu", A100),
        (BGE, "--gpu", A100),
        ("no/such-model",),
        (LLAMA, "--gpu", "nothing"),
    ):
        for form in OUTPUT_FORMATS:
            text = shown(partial(_size, words, form))
            yield _words("size", words, form, folder), text.replace(f"{folder}/", "")


def _size(words: Sequence[str], form: str) -> Output:
    return size_output(build_report(size_request(SIZE.parse(words), DAY)), form)


def _break_even(words: Sequence[str], form: str) -> Output:
    return breakeven_output(build_request(BREAKEVEN.parse(words), _AT), form)


def _words(name: str, words: Sequence[str], form: str, folder: Path) -> str:
    return " ".join((name, *words, "-o", form)).replace(f"{folder}/", "")


def _break_evens() -> Calls:
    plain = ("--hourly", "3.50", "--api-price", "0.90")
    busy = (*plain, "--tokens-per-second", "2000", "--requests-per-day", "1e6", "--peak", "2")
    for words in (
        plain,
        busy,
        (*busy, "--price-decline", "0.8/yr", "--months", "6", "--ops", "100"),
        (*plain, "--tokens", "100e9", "--sla-penalty", "3"),
        (*plain, "--tokens-per-second", "5"),
        (LLAMA, "--gpu", H100, "--api-price", "0.2"),
        (LLAMA, "--api-price", "0.2", "--slo", "ttft=1s,itl=10ms"),
        ("--hourly", "2"),
        plain[2:],
        (*plain, "--gpu", H100),
    ):
        for form in COST_FORMATS:
            yield (
                " ".join(("breakeven", *words, "-o", form)),
                shown(partial(_break_even, words, form)),
            )
    yield "breakeven --svg", draw(build_request(BREAKEVEN.parse(busy), _AT))


def _forecasts(folder: Path) -> Calls:
    plain = ("--requests", "1e6/month", "--prompt-tokens", "400", "--answer-tokens", "200")
    ranges = (
        *("--requests", "50:80:200/min", "--prompt-tokens", "300:400:900"),
        *("--answer-tokens", "200", "--turns", "1:2:4", "--retries", "0:0.1:0.3"),
        *("--hidden-tokens", "100", "--service", "team-a/chat"),
    )
    saved = str(folder / "forecast.json")
    day = str(Path(__file__).parents[2] / "examples" / "forecast" / "day.csv.gz")
    for words in (
        plain,
        (*ranges, "--save", saved),
        (*plain, LLAMA, "--gpu", H100),
        (*plain, "--api-price", "0.9", "--api-input-price", "0.3"),
        (*ranges, "--alert-rule"),
        ("--compare", saved, "--records", day),
        ("--compare", saved),
        ("--requests", "1/month"),
        (*plain, "--retries", "3:2:1"),
    ):
        for form in ("text", "json"):
            parsed = FORECAST.parse((*words, "-o", form))
            text = shown(partial(run_forecast, parsed))
            name = _words("forecast", words, form, folder).replace(day, "day.csv.gz")
            yield name, text.replace(f"{folder}/", "")


def _costs() -> Calls:
    def line(state: CostState, service: str = "chat", **fields: str) -> CostLine:
        owned = {"namespace": "team-a", "service": service} if state.allocated else {}
        plain = {"currency": "USD", "pool": "a100", "profile": "1g.10gb"}
        return CostLine(**{**plain, **owned, **fields}, state=state)

    amounts: Amounts = {
        ("acme", line(CostState.SERVING)): dollars("2.25"),
        ("acme", line(CostState.WARM_IDLE)): dollars("1.75"),
        ("", line(CostState.LOADING, "draft", namespace="team-b")): dollars("0.01"),
        ("", line(CostState.COLD_IDLE)): dollars("0.5"),
        ("", line(CostState.STRANDED, profile="")): dollars("0.5"),
        ("acme", line(CostState.SERVING, pool="h100", profile="", currency="EUR")): dollars("7"),
    }
    begin = NOW - timedelta(days=1)
    gap = (begin + timedelta(hours=1), begin + timedelta(hours=3))
    for by, gaps in product(("service", "tenant", "pool"), ((), (gap,))):
        report = CostReport(
            requested_from=begin - timedelta(hours=len(gaps)),
            now=NOW + timedelta(hours=len(gaps)),
            group_by=by,
            statement=Statement(begin=begin, end=NOW, amounts=amounts, gaps=gaps),
        )
        energy_report = replace(report, energy=_energy(amounts))
        for form in COST_FORMATS:
            yield f"cost --by {by} -o {form}, {len(gaps)} gaps", cost_output(report, form).text
            name = f"cost --energy --by {by} -o {form}, {len(gaps)} gaps"
            yield name, cost_output(energy_report, form).text


def _energy(amounts: Amounts) -> EnergyStatement:
    """Return a watt-hour for each milliunit of currency, some of it not split."""
    energy: dict[tuple[str, EnergyLine], Energy] = {}
    sources, splits = cycle(EnergySource), cycle((EnergySplit.ACTIVITY, EnergySplit.WEIGHT))
    for (tenant, line), nanos in amounts.items():
        is_stranded = line.state is CostState.STRANDED
        split = EnergySplit.NONE if is_stranded else next(splits)
        key = EnergyLine(line, next(sources), split)
        energy[tenant, key] = Energy(nanos * 3600 // 1000, nanos // 5, nanos // 10)
    return EnergyStatement(
        energy=energy,
        gaps={("a100", "CounterReset"): 90_000},
        idle_watts={IdleGPU("a100", f"a100-{index}", "0"): 20.0 + index for index in range(12)},
    )


def _usages() -> Calls:
    counts = {"requests": 4, "failed": 0, "aborted": 1, "estimated": 0}
    tokens = {"inputTokens": 4800, "cachedTokens": 0, "outputTokens": 1000, "reasoningTokens": 7}
    rows = [
        {"tenant": "team-a", "key": "laptop", **counts, **tokens},
        {"tenant": "team-b", "key": None, **counts, **tokens},
    ]
    answers: dict[str, dict[str, Any]] = {
        "rows": {"rows": rows, "truncated": False, "oldest": "2026-11-01T00:00:00+00:00"},
        "late": {"rows": rows, "truncated": True, "oldest": "2026-11-20T00:00:00+00:00"},
        "empty": {"rows": [], "truncated": False, "oldest": None},
    }
    for name, answer in answers.items():
        usage = UsageTable(("tenant", "key"), NOW - timedelta(days=1), NOW, answer)
        for form in COST_FORMATS:
            yield f"usage -o {form}, {name}", usage_output(usage, form).text


def _plans_of_files(folder: Path) -> Calls:
    demand, throughput, current = (
        folder / name for name in ("demand.csv", "throughput.csv", "current.json")
    )
    demand.write_text("service,demand,minReplicas\nchat,700,1\nsearch,300,2\n", encoding="utf-8")
    throughput.write_text(
        "service,profile,throughput\nchat,3g.40gb,350\nchat,whole,800\nsearch,1g.10gb,160\n"
        "search,2g.20gb,300\n",
        encoding="utf-8",
    )
    files = ("--gpu", "A100-80GB", "--demand", str(demand), "--throughput", str(throughput))
    first = json.loads(run_plan(PLAN.parse((*files, "--json"))).text)
    slices = [{"profile": "2g.20gb", "start": 0, "service": "search"}]
    first["layouts"] = [*first["layouts"], {"gpu": "gpu-9", "slices": slices}]
    current.write_text(json.dumps(first), encoding="utf-8")
    svg = folder / "plan.svg"
    few = folder / "few.csv"
    few.write_text("service,profile,throughput\nchat,3g.40gb,350\n", encoding="utf-8")
    for words in (
        files,
        (*files, "--current", str(current), "--svg", str(svg)),
        (*files, "--current", str(current), "--moves-per-gpu", "0"),
        (*files[:-1], str(few)),
        (*files, "a100"),
        ("--demand", str(demand)),
        (*files, "--moves-per-gpu", "-1"),
        ("--gpu", "no-such", *files[2:]),
    ):
        for form in ("text", "json"):
            parsed = PLAN.parse((*words, "-o", form))
            text = shown(partial(run_plan, parsed))
            yield _words("plan", words, form, folder), text.replace(f"{folder}/", "")
    yield "plan --svg", svg.read_text(encoding="utf-8")


async def _inputs(api: MemoryApi, **loads: float) -> FleetInputs:
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    pods = {
        Ref("team-a", name.replace("_", "-")): PodReading(activity=load)
        for name, load in loads.items()
    }
    return replace(fleet, readings=Readings(at=NOW, pods=pods)) if loads else fleet


def _layout_clusters() -> Iterator[tuple[str, MemoryApi, dict[str, float]]]:
    agent = {"backend": "Agent"}
    unit = {
        "node": "a100-0",
        "gpus": [0],
        "phase": "Draining",
        "since": "2026-11-20T11:59:20Z",
        "message": "waiting for replacements of team-a/chat-0 to become Ready",
    }
    loads = {"chat_0": 0.82, "code_0": 0.5}
    moving = {"target": a_plan(), "units": [unit], "done": 2, "total": 3}
    yield "moving", a_partitioned_cluster(agent, moving, "Repartitioning"), loads
    waits = {"target": a_plan(name="5e0d"), "proposed": a_plan(), "units": [unit]}
    yield "waiting", a_partitioned_cluster(agent, waits), {}
    proposed = {"proposed": a_plan()}
    mode = {"mode": "Propose"}
    yield "proposed", a_partitioned_cluster(mode, proposed, "AwaitingApproval"), loads
    unmet = {"target": a_plan(unmet=["team-a/giant"])}
    yield "unmet", a_partitioned_cluster({}, unmet, "InsufficientCapacity"), {}
    manager = a_partitioned_cluster({"backend": "MigManager"}, {"target": a_plan()}, "Planning")
    small = [a_slice("1g.10gb", 0, "chat-0"), a_slice("3g.40gb", 4, "code-9")]
    put_layout(manager, "a100-0", [small, [a_slice("3g.40gb", 4, "code-0")]])
    yield "manager", manager, {}
    yield "no plan", a_partitioned_cluster({}), {}
    yield "unmanaged", a_partitioned_cluster(None), loads
    yield "dear", a_partitioned_cluster({"mode": "Static"}, price="1234.5"), {}
    faulty = a_partitioned_cluster(agent)
    put_node(faulty, "a100-1", 1, {"mig-3g.40gb": 3})
    put_layout(faulty, "a100-0", [[], []], fault="ResetRequired", message="reset it")
    yield "faulty", faulty, {}
    template = {"product": PRODUCT, "gpus": 1, "maxNodes": 4, "expectedStart": "90s"}
    startable = a_partitioned_cluster({})
    [pool] = [body for key, body in startable.cluster.objects.items() if key.name == "a100"]
    pool["spec"].update(nodeTemplate=template)
    yield "startable", startable, {}
    yield "empty", MemoryApi(MemoryCluster()), {}


async def _layouts(folder: Path) -> Any:
    for name, api, loads in _layout_clusters():
        fleet = await _inputs(api, **loads)
        for form in ("text", "json"):
            yield (
                f"plan -o {form}, {name}",
                shown(partial(render_plans, fleet, None, form)),
            )
            for width in (76, 200):
                svg = folder / f"{name}.svg"
                yield (
                    f"mosaic -o {form}, {name}, {width}",
                    shown(partial(render_mosaic, fleet, None, form, width, str(svg))),
                )
        yield f"mosaic --svg, {name}", svg.read_text(encoding="utf-8") if svg.exists() else ""
        context = replace(a_check_context(api), at=NOW)
        findings = await run_checks(context)
        yield f"doctor, {name}", "\n".join(report_lines(findings))
        yield f"doctor -o json, {name}", json.dumps(as_json(findings))


async def _clusters(folder: Path) -> Any:
    _, api = await a_served_cluster()
    chat = Ref("team-a", "chat")
    fleet = await _inputs(api)
    pods = {
        Ref("team-a", f"chat-{index}"): PodReading(waiting=4, running=30, activity=0.5)
        for index in range(2)
    }
    read = replace(fleet, readings=Readings(at=NOW, pods=pods))
    for name, each in (("status", fleet), ("read", read)):
        for form in ("text", "json"):
            yield (
                f"explain -o {form}, {name}",
                shown(partial(explanation, each, chat, form)),
            )
        rows = service_rows(each.snapshot, each.compute_plan(each.snapshot), {chat: 1000.0}, None)
        yield f"top, {name}", json.dumps([row.model_dump(mode="json") for row in rows])
        yield f"top, pools, {name}", json.dumps(pools_json(each.snapshot))
        file = str(folder / f"{name}.json")
        save(file, serialize(each))
        for words in ((), ("--service", "team-a/chat"), ("--service", "chat")):
            for form in ("text", "json"):
                parsed = _parsed("snapshot", "plan", file, *words, "-o", form)
                yield (
                    " ".join(("snapshot plan", name, *words, form)),
                    shown(lambda parsed=parsed: run_snapshot_plan(parsed)),  # type: ignore[misc]
                )
    top: Any = top_command
    for form in ("text", "json"):
        # The reader of a cluster command is given as `cluster_command` would give it.
        output = await top.__wrapped__(Reader(api), _parsed("top", "-o", form))
        yield f"top -o {form}", output.text
    request = _request_row()
    answer = {"requests": [request], "total": 3}
    yield "top requests", "\n".join(request_lines([request], answer))
    yield "top requests, none", "\n".join(request_lines([], {"requests": [], "total": 0}))
    none = JoinedExplanations(requests=(), kept_requests=0, kept_since=None)
    yield "explain request", shown(lambda: request_report("abc", none, "text"))
    findings = await run_checks(replace(a_check_context(api), at=NOW))
    yield "doctor, served", "\n".join(report_lines(findings))
    digest = ("--sha256", "ab" * 32, "--tenant", "team-a", "--models", "chat,other")
    for form in ("text", "json"):
        keys = SecretsApi()
        arguments = KEY_CREATE.parse(("laptop", *digest, "--expires", "90d", "-o", form))
        yield f"key list -o {form}, none", (await list_keys(Reader(keys), arguments, NOW)).text
        yield f"key create -o {form}", (await create(Reader(keys), arguments, NOW)).text
        listed = await list_keys(Reader(keys), KEY_LIST.parse(("-o", form)), NOW)
        yield f"key list -o {form}", listed.text


def _parsed(*words: str) -> Any:
    """Return the arguments of a command of a group."""
    command: Any = root_command(())
    while isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    return command.parse(words)


def _request_row() -> dict[str, Any]:
    return {
        "service": "team-a/chat",
        "tenant": "team-a",
        "key": None,
        "model": "chat",
        "phase": "Running",
        "ageSeconds": 75.5,
        "outputTokens": 0,
        "replica": "chat-0",
        "requestId": "4f2",
    }
