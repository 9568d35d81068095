"""What the prefix cache of an engine had of a prompt, from the engine to all that reports it."""

import itertools
import json
from typing import Any

import pytest

from tessera.gateway.usage.logs import access_line
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.harness import CHAT, COMPLETION, a_directory, a_gateway, a_model, a_replica
from tests.lab.sim.running import running

pytestmark = pytest.mark.anyio
TEXT = "The answers of this assistant are short and polite. " * 60


def a_chat(text: str) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "system", "content": text}]}


def a_completion(text: str) -> dict[str, Any]:
    return {**COMPLETION, "prompt": text}


BODIES = {"/v1/chat/completions": a_chat, "/v1/completions": a_completion}


@pytest.mark.parametrize("flags", [("--enable-prompt-tokens-details",), ()])
async def test_the_record_of_a_repeated_prompt_has_what_the_engine_found_in_its_cache(
    flags: tuple[str, ...],
) -> None:
    kinds, records = list(itertools.product(BODIES, (False, True))), []
    async with running(*flags, "--served-model-name=chat") as engine:
        model = a_model(a_replica(engine.url.removeprefix("http://")))
        async with a_gateway(a_directory(model)) as gateway:
            for number, (path, stream) in enumerate(kinds):
                body = BODIES[path](f"{number} {TEXT}")
                for _ in range(2):
                    sent = {**body, "max_tokens": 2, "stream": stream}
                    assert (await gateway.post(sent, path)).status == 200
                    records.append(await gateway.take_record())
    metrics = GatewayMetrics()
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert (first.input_tokens, first.cached_tokens) == (second.input_tokens, 0)
        assert first.input_tokens > 700
        # All blocks but the last one, which is computed in any case.
        assert second.cached_tokens == (second.input_tokens - 1) // 16 * 16 * bool(flags)
        assert not second.estimated
        assert json.loads(access_line(second))["cachedTokens"] == second.cached_tokens
        metrics.requests.observe(first)
        metrics.requests.observe(second)
    pair = {"tenant": "team-a", "service": "team-a/chat"}
    for kind in ("input", "cached"):
        counted = metrics.registry.get_sample_value(
            "tessera_gateway_tokens_total", {**pair, "kind": kind}
        )
        assert counted == sum(getattr(record, f"{kind}_tokens") for record in records)
