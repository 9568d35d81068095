"""Requests that fit the gateway's OpenAPI description, and requests that do not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from gateway_openapi import document
from tessera.gateway.paths import OWN_PATHS, PATHS
from tests.clients.running import CHAT, offered, simulators
from tests.gateway.harness import KEY, a_directory
from tests.gateway.test_gateway_process import a_process
from tests.properties import examples

pytestmark = pytest.mark.anyio
CHECKS = [
    not_a_server_error,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_whatever_is_sent_gets_an_answer_that_is_described(
    mode: GenerationMode, tmp_path: Path
) -> None:
    schema = schemathesis.openapi.from_dict(document())
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert len(operations) == len(PATHS) + len(OWN_PATHS)
    async with (
        simulators(tmp_path, CHAT) as (engine,),
        a_process(tmp_path, a_directory(offered(engine, "chat"))) as gateway,
    ):
        for operation in operations:
            # Without a body nothing can be wrong with a request.
            if mode is GenerationMode.POSITIVE or operation.body:
                await asyncio.to_thread(try_operation, operation, mode, gateway.url)


def try_operation(operation: Any, mode: GenerationMode, url: str) -> None:
    """Send requests, half of which name a model that there is; fail at the first wrong answer."""

    @settings(suppress_health_check=list(HealthCheck), max_examples=examples(10))
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def attempt(case: Any, known: bool) -> None:
        if known and isinstance(case.body, dict):
            case.body["model"] = "chat"
        headers = {"Authorization": f"Bearer {KEY}"}
        case.call_and_validate(base_url=url, headers=headers, checks=CHECKS)

    attempt()
