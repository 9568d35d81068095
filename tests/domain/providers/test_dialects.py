"""What the rows of outside providers say, and which base URLs they fit."""

import json
from collections.abc import Sequence
from importlib import resources

import pytest
from pydantic import ValidationError

from tessera.api.model_provider import ProviderProtocol
from tessera.domain.providers.dialects import (
    PLAIN,
    dialect_name,
    dialect_of,
    dialects,
    parse_dialects,
)
from tests.builders import a_provider


@pytest.mark.parametrize(
    ("name", "protocol", "places"),
    [
        # Its completions leave reasoning out, which is added.
        (
            "x-ai",
            "OpenAIChat",
            [
                "prompt_tokens=input",
                "prompt_tokens_details.cached_tokens=cached",
                "completion_tokens_details.reasoning_tokens=output",
                "completion_tokens_details.reasoning_tokens=reasoning",
                "completion_tokens=output",
            ],
        ),
        (
            "anthropic",
            "AnthropicMessages",
            [
                "input_tokens=input",
                "cache_creation_input_tokens=input",
                "cache_read_input_tokens=input",
                "cache_creation_input_tokens=cacheWrite",
                "cache_creation.ephemeral_1h_input_tokens=longCacheWrite",
                "cache_read_input_tokens=cached",
                "server_tool_use.web_search_requests=searches",
                "output_tokens_details.thinking_tokens=reasoning",
                "output_tokens=output",
            ],
        ),
        (
            "databricks",
            "OpenAIChat",
            [
                "prompt_tokens=input",
                "cache_read_input_tokens=cached",
                "reasoning_tokens=reasoning",
                "completion_tokens=output",
            ],
        ),
        (
            "openai",
            "OpenAIResponses",
            [
                "input_tokens=input",
                "input_tokens_details.cached_tokens=cached",
                "input_tokens_details.cache_write_tokens=cacheWrite",
                "output_tokens_details.reasoning_tokens=reasoning",
                "output_tokens=output",
            ],
        ),
    ],
)
def test_a_row_says_where_counts_stand(
    name: str, protocol: ProviderProtocol, places: Sequence[str]
) -> None:
    counts = dialects()[name].counts[protocol]
    assert [f"{'.'.join(each.path)}={each.count}" for each in counts] == places


def test_every_protocol_of_a_row_counts_the_input_and_the_output() -> None:
    for name, dialect in dialects().items():
        for protocol, places in dialect.counts.items():
            counts = {each.count for each in places}
            assert counts >= {"input", "output"}, (name, protocol)


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.x.ai/v1", "x-ai"),
        ("https://API.X.AI:443/v1", "x-ai"),
        ("https://eu-west-1.api.x.ai/v1", "x-ai"),
        ("https://api.moonshot.cn/v1", "moonshotai"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "google"),
        ("https://my-models.openai.azure.com/openai/v1", "azure"),
        ("https://router.huggingface.co/groq/v1", "huggingface_groq"),
        ("https://api.cloudflare.com/client/v4/accounts/0a1b/ai/v1", "cloudflare"),
        ("https://adb-1.2.azuredatabricks.net/serving-endpoints", "databricks"),
        ("https://models.example.com/v1", ""),
    ],
)
def test_a_base_url_names_its_row(base_url: str, name: str) -> None:
    assert dialect_name(dialects(), base_url) == name


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.x.ai.evil.example/v1",
        "https://api.x.aix/v1",
        "https://evil.example/.api.x.ai",
        "https://evilapi.x.ai/v1",
        "https://apixx.ai/v1",
        "https://api.moonshot.evil.example/v1",
        "https://evil.example/generativelanguage.googleapis.com",
        "https://evilgoogleapis.com/v1",
        "https://evil.example/my.openai.azure.com",
        "https://evil.example/a.modal.run",
        "https://openai.azure.com.evil.example/v1",
        "https://evil.example/.cloud.databricks.com/serving-endpoints",
        "https://api.cloudflare.com.evil.example/client/v4/accounts/0a1b/ai",
        "http://api.x.ai/v1",
        "https://evil.example/?https://api.x.ai/v1",
    ],
)
def test_a_host_of_somebody_else_has_no_row(base_url: str) -> None:
    assert dialect_name(dialects(), base_url) == ""


def test_of_two_rows_the_longer_beginning_holds() -> None:
    text = '{"rows": [{"name": "%s", "host": "%s"}]}'
    hosts = [("all", "https://a.example"), ("part", "https://a.example/part"), ("other", "http")]
    rows = parse_dialects(text % each for each in hosts)
    assert dialect_name(rows, "https://a.example/part/v1") == "part"


def test_a_row_with_an_unknown_fact_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"some\.hots"):
        parse_dialects(['{"rows": [{"name": "some", "hots": "https://a.example"}]}'])


def test_the_rows_are_small_and_carry_the_notice_of_their_license() -> None:
    text = resources.files("tessera.domain").joinpath("data", "dialects.json").read_text("utf-8")
    header = json.loads(text)
    assert len(text.encode()) <= 64 * 1024
    assert (header["package"], header["version"]) == ("genai-prices", "0.2.3")
    assert "Permission is hereby granted" in header["license"]


def test_a_base_url_of_a_row_is_one_that_a_provider_may_have_and_names_the_row() -> None:
    for name, dialect in dialects().items():
        if dialect.base_url:
            spec = a_provider("acme", baseUrl=dialect.base_url, protocols=dialect.protocols).spec
            assert spec is not None
            assert dialect_of(spec) is dialect, name


def test_every_line_by_hand_has_its_source() -> None:
    text = (
        resources.files("tessera.domain").joinpath("data", "dialect-notes.json").read_text("utf-8")
    )
    for row in json.loads(text)["rows"]:
        assert row["source"].startswith("https://"), row


@pytest.mark.parametrize(("name", "row"), [("x-ai", "x-ai"), (None, "openai"), ("klingon", None)])
def test_the_name_in_the_spec_holds_before_the_host(name: str | None, row: str | None) -> None:
    spec = a_provider(baseUrl="https://api.openai.com/v1", dialect=name).spec
    assert spec is not None
    assert dialect_of(spec) == (PLAIN if row is None else dialects()[row])
