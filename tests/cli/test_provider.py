"""`tessera provider`: what it writes is a ModelProvider, and what it compares is the cluster's."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator

from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.schema import crd
from tessera.cli.doctor.finding import Finding
from tessera.cli.doctor.providers import check_provider_prices
from tessera.cli.errors import CommandError
from tessera.cli.provider.add import provider_lines
from tessera.cli.provider.arguments import PROVIDER_ADD, PROVIDER_PRICES
from tessera.cli.provider.diff import differences
from tessera.cli.provider.prices import listing
from tessera.cli.provider.table import read_table
from tessera.domain.kinds.kinds import KINDS, MODEL_PROVIDERS
from tessera.domain.providers.prices import shipped_prices
from tests.cli.check_contexts import a_check_context
from tests.cli.memory_api import MemoryApi
from tests.memory_cluster import MemoryCluster

DAY = date(2026, 11, 30)


def added(*words: str) -> str:
    return "\n".join(provider_lines(PROVIDER_ADD.parse(words), DAY))


def an_object(text: str, **metadata: str) -> dict[str, Any]:
    """Return the object of the YAML as the API server would hold it."""
    body: dict[str, Any] = yaml.safe_load(text)
    created = {"uid": "1", "creationTimestamp": "2026-11-01T00:00:00Z"}
    return body | {"metadata": body["metadata"] | created | metadata}


def test_what_is_added_is_a_model_provider_with_the_prices_of_the_table() -> None:
    text = added("x-ai", "grok-4.5", "--max-output-tokens", "64000", "--tenants", "team-a,team-b")
    assert yaml.safe_load(text) == {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelProvider",
        "metadata": {"name": "x-ai"},
        "spec": {
            "baseUrl": "https://api.x.ai/v1",
            "protocols": ["OpenAIChat", "OpenAIResponses"],
            "secret": {"name": "x-ai"},
            "tenants": ["team-a", "team-b"],
            "models": [
                {
                    "name": "grok-4.5",
                    "maxContextTokens": 500_000,
                    "maxOutputTokens": 64_000,
                    "cost": {
                        "input": "2",
                        "cachedInput": "0.3",
                        "output": "6",
                        "steps": [
                            {
                                "aboveInputTokens": 199_999,
                                "input": "4",
                                "cachedInput": "0.6",
                                "output": "12",
                            }
                        ],
                        "observedAt": "2026-11-10",
                    },
                }
            ],
        },
    }


@pytest.mark.parametrize(
    "words",
    [
        ("x-ai", "grok-4.5"),
        ("deepseek", "deepseek-v4-pro", "--tenants", "team-a"),
        ("moonshotai", "kimi-k3"),
        ("anthropic", "claude-sonnet-4-5", "claude-sonnet-5-5", "--max-searches", "5"),
        ("openai", "gpt-5.4", "--reasoning", "--media", "--no-tools", "--region", "us"),
        ("azure", "gpt-5.4", "--base-url", "https://a.openai.azure.com/openai/v1", "--as", "az"),
        ("mistral", "mistral-large-latest", "--max-context-tokens", "128000"),
    ],
)
def test_the_api_server_takes_what_is_added(words: tuple[str, ...]) -> None:
    body = an_object(added(*words, "--max-output-tokens", "32000"))
    [kind] = [kind for kind in KINDS if kind.model.__name__ == "ModelProvider"]
    [version] = crd(kind)["spec"]["versions"]
    Draft202012Validator(version["schema"]["openAPIV3Schema"]).validate(body)
    provider = parse_own(MODEL_PROVIDERS, body)
    assert provider.problem is None
    assert not differences(shipped_prices(), [body], DAY, "text").exit_code


def test_steps_that_no_prompt_reaches_are_left_out() -> None:
    text = added("anthropic", "claude-sonnet-4-5", "--max-output-tokens", "64000")
    assert "steps" not in yaml.safe_load(text)["spec"]["models"][0]["cost"]


def test_comments_say_what_the_prices_do_not() -> None:
    text = added("deepseek", "deepseek-v4-pro", "--max-output-tokens", "64000")
    assert "other prices from 01:00-04:00 and 06:00-10:00 UTC" in text
    assert "https://api-docs.deepseek.com/quick_start/pricing" in text
    assert "# Tenants: nobody may use it" in text
    text = added("google", "gemini-3.6-flash", "--max-output-tokens", "64000")
    assert "# The table has other prices of gemini-3.6-flash from 2027-01-01 on." in text
    assert "# A search of the web costs 0.014" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("x-ai", "grok-4.5"),
            "no limits of answers: give --max-output-tokens N. See https://docs",
        ),
        (
            ("azure", "gpt-5.4"),
            "no base URL of azure: give --base-url URL; no limits of answers: give --max-out",
        ),
        (("mistral", "mistral-large-latest"), "no limits of answers"),
        (("nothing", "m"), "no prices of nothing; choose of anthropic, arcee"),
        (("x-ai", "grok-99"), "no model grok-99 of x-ai; tessera provider prices x-ai lists"),
        (
            ("x-ai", "grok-4.5", "--max-output-tokens", "600000"),
            "--max-output-tokens 600000 is above the context of grok-4.5, which is 500000",
        ),
        (
            ("x-ai", "grok-4.5", "--max-output-tokens", "9", "--base-url", "http://api.x.ai"),
            "spec.baseUrl: .*must be an https URL",
        ),
    ],
)
def test_what_the_table_lacks_is_asked_for(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        added(*words)


def test_a_model_without_a_context_asks_for_one() -> None:
    model = next(row for row in shipped_prices().rows if row.context is None)
    words = (model.provider, model.model, "--base-url", "https://a.example", "--protocol")
    limits = ("OpenAIChat", "--max-output-tokens", "100")
    with pytest.raises(CommandError, match=r"no context of .*: give --max-context-tokens N"):
        added(*words, *limits)
    assert "maxContextTokens: 8000" in added(*words, *limits, "--max-context-tokens", "8000")


def test_an_own_table_is_read_and_an_error_of_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    row = {"provider": "acme", "model": "Big", "match": "^big$", "context": 1000}
    row["prices"] = [{"input": "1", "output": "2"}]
    file.write_text(json.dumps({"date": "2026-11-20", "rows": [row]}), encoding="utf-8")
    text = added(
        *("acme", "Big", "--table", str(file), "--max-output-tokens", "100"),
        *("--base-url", "https://api.acme.example/v1", "--protocol", "OpenAIChat"),
    )
    assert "observedAt: '2026-11-20'" in text
    file.write_text('{"date": "2026-11-20"}', encoding="utf-8")
    with pytest.raises(CommandError, match=r"--table .*own.json: rows: Field required; the format"):
        read_table(str(file))
    with pytest.raises(CommandError, match="No such file"):
        read_table(str(tmp_path / "none.json"))


def prices(*words: str) -> str:
    return listing(PROVIDER_PRICES.parse(words), DAY).text


def test_prices_are_listed_with_their_steps_and_later_ones() -> None:
    assert prices("x-ai", "grok-4.5") == (
        "MODEL     CONTEXT   ABOVE  INPUT  CACHED INPUT  OUTPUT\n"
        "grok-4.5   500000       -      2           0.3       6\n"
        "grok-4.5   500000  199999      4           0.6      12\n"
        "\n"
        "USD a million tokens, by genai-prices 0.2.3 of 2026-11-10: https://docs.x.ai/docs/models\n"
    )
    assert "2027-01-01    1.5          0.15     7.5" in prices("google", "gemini-3.6-flash")
    [model] = json.loads(prices("deepseek", "deepseek-v4-pro", "--json"))["models"]
    assert model["prices"][0]["hours"] == ["01:00-04:00", "06:00-10:00"]
    assert prices("x-ai", "-o", "csv").startswith("model,context,from,above,input,cachedInput,")


@pytest.mark.parametrize(
    ("edit", "findings"),
    [
        (("", ""), ["ok: 1 model, none old or unlike the table"]),
        (
            ("'2026-11-10'", "'2026-05-01'"),
            ["warning: last compared more than 180 days ago: x-ai/grok-4.5"],
        ),
        (
            ("cachedInput: '0.3'", "cachedInput: '0.5'"),
            ["warning: other than in genai-prices 0.2.3 of 2026-11-10: x-ai/grok-4.5"],
        ),
    ],
)
async def test_doctor_names_prices_that_are_old_or_not_the_tables(
    edit: tuple[str, str], findings: list[str]
) -> None:
    cluster = MemoryCluster()
    text = added("x-ai", "grok-4.5", "--max-output-tokens", "64000")
    cluster.put(MODEL_PROVIDERS, an_object(text.replace(*edit)))
    answer = await check_provider_prices(a_check_context(MemoryApi(cluster)))
    listed = [answer] if isinstance(answer, Finding) else list(answer)
    assert [f"{each.state}: {each.message}" for each in listed] == findings


def test_differences_of_the_cluster_are_named_and_end_with_1() -> None:
    body = an_object(added("x-ai", "grok-4.5", "--max-output-tokens", "64000"))
    other = an_object(
        added("openai", "gpt-5.4", "--max-output-tokens", "64000").replace("'2.5'", "'9'")
    )
    foreign = json.loads(json.dumps(body)) | {"metadata": body["metadata"] | {"name": "own"}}
    foreign["spec"]["baseUrl"] = "https://models.example.com/v1"
    broken = {"metadata": body["metadata"] | {"name": "broken"}, "spec": {}}
    output = differences(shipped_prices(), [other, body, foreign, broken], DAY, "text")
    assert output.exit_code == 1
    assert output.text == (
        "PROVIDER  MODEL    FIELD           CLUSTER  TABLE\n"
        "openai    gpt-5.4  input           9        2.5\n"
        "openai    gpt-5.4  cacheWrite      9        2.5\n"
        "openai    gpt-5.4  longCacheWrite  9        2.5\n"
        "\n"
        "2 models compared with genai-prices 0.2.3 of 2026-11-10\n"
        "own/grok-4.5 has no prices in the table in USD\n"
    )
    report = json.loads(differences(shipped_prices(), [other, foreign], DAY, "json").text)
    assert report["notListed"] == ["own/grok-4.5"]
    assert report["differences"][0]["table"] == "2.5"
