"""Which requests a model of an outside provider can take."""

from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import OutsideModel
from tessera.domain.routes.outside import outside_obstacle
from tests.builders import A_MODEL_OUTSIDE, a_budget, a_provider


def a_model(changes: dict[str, Any], **fields: Any) -> OutsideModel:
    provider = a_provider(models=[{**A_MODEL_OUTSIDE, **changes}], **fields)
    observed = GatewayObservations(providers=(provider,), budgets=(a_budget(),))
    outside = build_directory(observed, RateLimitsSpec()).outside["acme", "Big"].outside
    assert outside is not None
    return outside


def obstacle(outside: OutsideModel, **fields: Any) -> str | None:
    request: dict[str, Any] = {
        "path": "/v1/chat/completions",
        "input_tokens": 100,
        "has_tools": False,
        "has_media": False,
        "residency": None,
    }
    return outside_obstacle(outside, **{**request, **fields})


@pytest.mark.parametrize(
    ("model", "request_fields", "reason"),
    [
        ({}, {}, None),
        ({}, {"path": "/v1/messages"}, "PathNotServed"),
        ({}, {"path": "/v1/embeddings"}, "PathNotServed"),
        ({}, {"path": "/tokenize"}, "PathNotServed"),
        ({}, {"has_tools": True}, None),
        ({"tools": False}, {"has_tools": True}, "ToolsNotTaken"),
        ({}, {"has_media": True}, "MediaNotTaken"),
        ({"media": True}, {"has_media": True}, None),
        ({}, {"input_tokens": 4095}, None),
        ({}, {"input_tokens": 4096}, "ContextTooLong"),
        ({}, {"residency": frozenset({"eu"})}, "DataResidency"),
        ({}, {"residency": frozenset({"InCluster"}), "path": "/tokenize"}, "DataResidency"),
    ],
)
def test_a_request_is_taken_or_the_reason_says_why_not(
    model: dict[str, Any], request_fields: dict[str, Any], reason: str | None
) -> None:
    assert obstacle(a_model(model), **request_fields) == reason


def test_a_provider_in_an_allowed_region_takes_requests() -> None:
    regions = frozenset({"eu", "us"})
    assert obstacle(a_model({}, region="eu"), residency=regions) is None
    assert obstacle(a_model({}, region="asia"), residency=regions) == "DataResidency"


def test_each_protocol_has_its_path() -> None:
    speaks_all = a_model({}, protocols=["OpenAIChat", "OpenAIResponses", "AnthropicMessages"])
    paths = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
    assert [obstacle(speaks_all, path=path) for path in paths] == [None] * 3
