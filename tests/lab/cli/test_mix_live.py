"""`tessera mix --from-prometheus`, against a server that answers as Prometheus does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.adapters.prometheus.queries import each_engine
from tessera.cli.errors import CommandError
from tessera_lab.cli.mix.arguments import mix
from tessera_lab.cli.mix.command import run
from tests.lab.cli.test_simulate_live import LiveService, serving

FLEET = Path(__file__).resolve().parents[3] / "examples" / "simulate"
# In every 5 minutes of the first half of the time, and of the second.
QUIET, BUSY = 300, 1500
TOTALS = {
    "request_prompt_tokens_count": 86_400,
    "request_prompt_tokens_sum": 86_400 * 1000,
    "request_generation_tokens_sum": 86_400 * 200,
    "prompt_tokens_cached_total": 0,
    "prompt_tokens_total": 86_400 * 1000,
}
# What is asked of ten minutes: engines that served all of it, 5 requests per second.
SPAN_VALUES = {
    "minutes": 10,
    "requests": 3000,
    "answers": 3000,
    "inputs": 3_000_000,
    "outputs": 600_000,
    "prompts": 3_000_000,
    "cached": 0,
}


def answer(path: str, params: dict[str, str]) -> Any:
    if path == "/api/v1/query_range":
        start, end, step = (float(params[name].rstrip("s")) for name in ("start", "end", "step"))
        moments = [start + step * number for number in range(round((end - start) / step) + 1)]
        if "tessera_question" in params["query"]:
            return [
                {
                    "metric": {"tessera_question": name},
                    "values": [[at, str(value)] for at in moments],
                }
                for name, value in SPAN_VALUES.items()
                if f'"{name}", ""' in params["query"]
            ]
        middle = (start + end) / 2
        return [
            {"metric": {}, "values": [[at, str(QUIET if at < middle else BUSY)] for at in moments]}
        ]
    if params["query"] == "count(up)":
        return [{"metric": {}, "value": [0, "1"]}]
    name = params["query"].partition("vllm:")[2].partition("{")[0]
    return [{"metric": {}, "value": [0, str(TOTALS[name])]}]


def success(path: str, params: dict[str, str]) -> Any:
    return {"status": "success", "data": {"result": answer(path, params)}}


@pytest.fixture
def live() -> Iterator[LiveService]:
    with serving(success) as service:
        yield service


def report(live: LiveService, *words: str) -> Any:
    parsed = mix.parse(["--from-prometheus", live.url, "--since", "2d", "--json", *words])
    return json.loads(run(parsed).text)


def test_a_load_is_what_the_engines_of_the_service_counted(live: LiveService) -> None:
    named = ("--service", "team-a/chat", "--replica-rate", "2", "--on-demand", "3.50")
    result = report(live, *named)
    # 1 request per second in the first day, and 5 in the second.
    assert result["load"] == {
        "hours": 48.0,
        "meanReplicas": 2.0,
        "p50Replicas": 1,
        "p95Replicas": 3,
        "peakReplicas": 3,
    }
    source = result["source"]
    assert (source["service"], source["requests"]) == ("team-a/chat", 288 * (QUIET + BUSY))
    assert (source["inputTokens"], source["outputTokens"]) == (1000, 200)
    assert (source["replicaRequestsPerSecond"], source["predicted"]) == (2.0, False)
    selector = 'namespace="team-a",tessera_dev_service="chat"'
    queries = [query["query"] for query in live.queries]
    for counter, seconds in (("prompt_tokens_count", 300), ("generation_tokens_sum", 172800)):
        series = f"increase(vllm:request_{counter}{{%s}}[{seconds}s])"
        assert f"sum({each_engine(series, matchers=selector)})" in queries


def test_a_fleet_file_has_the_capacity_the_prices_and_the_least_replicas(
    live: LiveService,
) -> None:
    result = report(live, "--fleet", str(FLEET))
    assert result["source"]["predicted"]
    # So many replicas carry the 5 requests per second of the second day; fewer carry less each.
    rate, peak = result["source"]["replicaRequestsPerSecond"], result["load"]["peakReplicas"]
    assert (peak - 2) * rate < 5 <= peak * rate
    # One carries the 1 request per second of the first day, and the manifest has 2 at least.
    assert rate > 1
    assert result["load"]["p50Replicas"] == 2
    assert (result["currency"], result["replicaHour"]["onDemand"]) == ("USD", 3.43)
    priced = report(live, "--fleet", str(FLEET), "--reserved", "1.5")
    assert (priced["replicaHour"]["reserved"], priced["replicaHour"]["onDemand"]) == (1.5, 3.43)


def test_the_text_says_of_what_the_load_is(live: LiveService) -> None:
    words = ["--from-prometheus", live.url, "--since", "2d", "--fleet", str(FLEET)]
    text = run(mix.parse(words)).text
    assert text.startswith("team-a/chat: 518400 requests since ")
    assert "of 1000 input and 200 output tokens on average\nA replica carries " in text
    assert text.splitlines()[2] == (
        "By the load: a100-reserved-1gpu-fp8 costs 329.28 USD a day for the load of 7 days, the "
        "least; a100-reserved-2gpu-fp8 would cost 493.92 USD"
    )


def test_its_url_may_stand_in_the_environment(
    live: LiveService, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--service", "team-a/chat", "--from-prometheus", "--replica-rate=2", "--on-demand=3"]
    monkeypatch.delenv("TESSERA_PROMETHEUS_URL", raising=False)
    with pytest.raises(CommandError, match=r"or in \$TESSERA_PROMETHEUS_URL"):
        run(mix.parse(words))
    monkeypatch.setenv("TESSERA_PROMETHEUS_URL", live.url)
    assert run(mix.parse(words)).text.startswith("team-a/chat: ")


def test_a_load_of_before_the_first_sample_names_that_one() -> None:
    """The beginning has no sample, and the range query none before the last day."""
    began = 1_800_000_000

    def respond(path: str, params: dict[str, str]) -> Any:
        rows: list[Any] = [] if params["query"] == "count(up)" else answer(path, params)
        if path.endswith("query_range") and params["query"] == "count(up)":
            rows = [{"metric": {}, "values": [[began, "3"], [began + 60, "3"]]}]
        return {"status": "success", "data": {"result": rows}}

    named = ("--service", "team-a/chat", "--replica-rate", "2", "--on-demand", "3.50")
    with serving(respond) as service, pytest.raises(CommandError) as error:
        report(service, *named)
    assert "its oldest are of about 2027-01-15" in str(error.value)
    assert "write a later --since" in str(error.value)


@pytest.mark.parametrize(
    ("empty", "problem"),
    [
        ("count(up)", "has no samples since"),
        ("increase(vllm:request_prompt_tokens_count", "has no request of team-a/chat since"),
    ],
)
def test_a_load_that_is_not_there_is_a_sentence(empty: str, problem: str) -> None:
    def respond(path: str, params: dict[str, str]) -> Any:
        rows = [] if empty in params["query"] else answer(path, params)
        return {"status": "success", "data": {"result": rows}}

    named = ("--service", "team-a/chat", "--replica-rate", "2", "--on-demand", "3.50")
    with serving(respond) as service, pytest.raises(CommandError) as error:
        report(service, *named)
    assert f"--from-prometheus {service.url}" in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("--service", "team-a/chat", "--since", "23h"), "--since 23h is too short"),
        (("--service", "team-a/chat", "--window", "5"), "write a longer --window"),
        (("--service", "chat"), "--service chat: write NAMESPACE/NAME"),
        (("--service", 'team-a/c"} or up{a="'), "write NAMESPACE/NAME"),
        ((), "write NAMESPACE/NAME"),
        (("load.csv",), "give a file with a load or --from-prometheus, and not both"),
        (("--service", "team-a/chat"), "Connection refused"),
        (("--fleet", str(FLEET), "--service", "other"), "has no InferenceService/other"),
    ],
)
def test_a_wrong_option_is_a_sentence_with_its_fix(words: tuple[str, ...], fix: str) -> None:
    nowhere = ("--from-prometheus", "http://127.0.0.1:9", "--since", "2d")
    with pytest.raises(CommandError) as error:
        run(mix.parse([*nowhere, "--replica-rate", "2", "--on-demand", "3", *words]))
    assert fix in str(error.value)


def test_a_load_without_a_file_or_a_rate_says_what_is_missing(live: LiveService) -> None:
    with pytest.raises(CommandError, match="say with --replica-rate"):
        report(live, "--service", "team-a/chat", "--on-demand", "3")
    with pytest.raises(CommandError, match="give a file with a load or --from-prometheus"):
        run(mix.parse(["--on-demand", "3"]))
    with pytest.raises(CommandError, match="--service is of a load that --from-prometheus reads"):
        run(mix.parse(["load.csv", "--on-demand", "3", "--service", "team-a/chat"]))
    with pytest.raises(CommandError, match="is more than 1000 replicas carry"):
        report(live, "--service", "team-a/chat", "--replica-rate", "0.001", "--on-demand", "3")


def pools(tmp_path: Path, **currencies: str) -> Path:
    """Return the example with these pools, each of a tier and a currency."""
    text = (FLEET / "fleet.yaml").read_text(encoding="utf-8")
    service = next(part for part in text.split("---") if "InferenceService" in part)
    parts = [service]
    for tier, currency in currencies.items():
        pool = {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "AcceleratorPool",
            "metadata": {"name": tier.lower()},
            "spec": {
                "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "t": tier},
                "tier": tier,
                "prices": [{"from": "2026-01-01", "perGPUHour": "4.00", "currency": currency}],
            },
        }
        parts.append(json.dumps(pool))
    path = tmp_path / "fleet.yaml"
    path.write_text("\n---\n".join(parts), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("tiers", "prices"),
    [
        (("Reserved",), {"onDemand": 6.6667, "reserved": 4.0, "spot": 2.0}),
        (("Reserved", "Spot"), {"onDemand": 6.6667, "reserved": 4.0, "spot": 4.0}),
    ],
)
def test_a_tier_without_a_pool_costs_its_usual_share_of_another(
    live: LiveService, tmp_path: Path, tiers: tuple[str, ...], prices: dict[str, float]
) -> None:
    result = report(live, "--fleet", str(pools(tmp_path, **dict.fromkeys(tiers, "USD"))))
    assert {name: round(result["replicaHour"][name], 4) for name in prices} == prices


def test_prices_that_cannot_be_compared_are_a_sentence(live: LiveService, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as error:
        report(live, "--fleet", str(pools(tmp_path, OnDemand="USD", Reserved="EUR")))
    assert "cannot be compared; name pools of one currency" in str(error.value)


def test_another_currency_is_that_of_the_pools(live: LiveService, tmp_path: Path) -> None:
    file = str(pools(tmp_path, OnDemand="EUR"))
    result = report(live, "--fleet", file)
    assert (result["currency"], result["replicaHour"]["reserved"]) == ("EUR", 2.4)
    words = ["--from-prometheus", live.url, "--since", "2d", "--fleet", file]
    text = run(mix.parse(words)).text
    assert "EUR/MONTH" in text
    assert "USD" not in text
