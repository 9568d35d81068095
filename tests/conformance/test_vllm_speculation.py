"""N-gram speculation on a real vLLM: the flag of the operator, and the counters that it reads."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import SERVICE, VARIANT
from tessera.adapters.prometheus.speeds import SPEEDS
from tessera.domain.observed.drafts import DraftCounts
from tessera.domain.observed.snapshot import Readings, Ref
from tessera.domain.perf.speculation import acceptance_of
from tessera.gateway.http.token_counts import draft_counts
from tests.builders import SMALL, a_spec, at
from tests.conformance import engines
from tests.conformance.configurations import CONTEXT, MODEL, Configuration
from tests.conformance.engines import EngineProcess
from tests.conformance.scraping import scraped
from tests.memory_operator import CHAT, DEPLOYMENT, MemoryOperator, add_pool_and_node
from tests.memory_operator import VARIANT as A100_SLICE
from tests.resources.engine_objects import container
from world.testing import eventually

pytestmark = pytest.mark.vllm

TOKENS = 3
COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
SERVED = Ref("team-a", "chat")
LABELS = {"namespace": SERVED.namespace, SERVICE: SERVED.name, VARIANT: A100_SLICE, "pod": "chat-0"}
# Of a service whose objectives let so many requests run at once.
LOADED: dict[str, Any] = {
    "engine": {
        "speculation": {"method": "NGram", "tokens": 8},
        "loader": {"type": "Dummy"},
        "extraArgs": ["--enforce-eager", "--dtype=bfloat16"],
    },
    "slo": {"ttftP95": "5s", "itlP95": "200ms"},
    "context": {"maxModelLen": CONTEXT, "typicalInputTokens": 100, "typicalOutputTokens": 200},
    "replicas": 1,
}
FEW, MANY = 4, 144
# The only token of all answers, and another one.
ANSWERED, OTHER = 100, 200
# What n-grams draft is what followed the same four tokens first: of 8 that many are right.
ALL_RIGHT, TWO_RIGHT = 8, 2
READING_SECONDS = 300


def speculating() -> Configuration:
    """The command line of the conformance tests with the flags that a service gets."""
    spec = a_spec(SMALL, engine={"speculation": {"method": "NGram", "tokens": TOKENS}})
    flags = [each for each in container(spec)["args"] if "-spec" in each]
    assert len(flags) == 2, flags
    argv = (
        "--load-format=dummy",
        "--enforce-eager",
        "--dtype=bfloat16",
        f"--max-model-len={CONTEXT}",
        f"--served-model-name={MODEL}",
        "--max-num-seqs=4",
        *flags,
    )
    return Configuration(name="speculation", argv=argv)


async def test_the_acceptance_of_n_grams_is_read_from_the_engines_counters(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    async with engines.running(engines.real(venv), str(model), speculating(), tmp_path) as engine:
        # Random weights repeat themselves when they decode greedily, which n-grams foresee.
        body = {
            "model": MODEL,
            "prompt": "a b c d " * 40,
            "max_tokens": 400,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = await engine.http.post("/v1/completions", json=body)
        page = (await engine.http.get("/metrics")).text
    assert answer.status_code == 200, answer.text
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    names = [f"vllm:spec_decode_{counter}_total" for counter in COUNTERS]
    assert all(any(name in query.text for query in SPEEDS.values()) for name in names)
    drafts, drafted, accepted = (int(values[name]) for name in names)
    assert 0 < drafts <= drafted <= TOKENS * drafts
    acceptance = acceptance_of(accepted / drafted, drafted / drafts)
    print(f"\n{accepted} of {drafted} drafted tokens accepted: acceptance {acceptance:.2f}")
    assert 0 <= acceptance <= 1
    # Each step gave one token beside its accepted drafts, and some steps drafted nothing.
    assert drafts + accepted <= 400
    # The gateway reads the same of the answer itself.
    assert draft_counts(msgspec.Raw(json.dumps(answer.json()["metrics"]).encode())) == DraftCounts(
        drafts=drafts, drafted_tokens=drafted, accepted_tokens=accepted
    )


def decided(operator: MemoryOperator) -> Configuration:
    """The command line of the engine as the operator wrote it, for another model and port."""
    (engine,) = operator.body(DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    argv = tuple(word for word in engine["args"][1:] if not word.startswith("--port="))
    return Configuration(name="decided", argv=argv)


@asynccontextmanager
async def loaded(engine: EngineProcess, requests: int, right: int) -> AsyncIterator[None]:
    """Keep so many requests at the engine; of their drafts so many tokens are right."""
    body = {
        "model": SERVED.name,
        "prompt": [ANSWERED] * (4 + right) + [OTHER] * 8,
        "max_tokens": 400,
        "temperature": 0,
        "allowed_token_ids": [ANSWERED],
        "ignore_eos": True,
    }

    async def repeat() -> None:
        while True:
            answer = await engine.http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text

    async with asyncio.TaskGroup() as clients:
        tasks = [clients.create_task(repeat()) for _ in range(requests)]
        yield
        for task in tasks:
            task.cancel()


async def readings_at(moment: datetime, prometheus: str, running: int) -> Readings:
    """What the operator reads once so many requests run, and the engine has ended some."""

    async def enough_run() -> Readings:
        readings = await PrometheusMetrics(prometheus, lambda: moment).read()
        speeds = readings.speeds.get(SERVED, ())
        assert any(
            (speed.median_running or 0) >= 0.9 * running and speed.requests for speed in speeds
        ), speeds
        return readings

    return await eventually(enough_run, within=READING_SECONDS)


async def cycles(
    operator: MemoryOperator, engine: EngineProcess, requests: int, minutes: Sequence[int]
) -> dict[str, Any]:
    """Run a cycle at each of these minutes with what the engine shows then; return the status."""
    status: dict[str, Any] = {}
    # A Prometheus of its own: the ten minutes of a median have passed since another load.
    async with scraped(engine.url, LABELS, engine.log.parent) as prometheus:
        for minute in minutes:
            readings = await readings_at(at(minute * 60), prometheus, requests)
            operator.at, operator.observations.readings = readings.at, readings
            await operator.reconcile()
            status = operator.body(CHAT)["status"]
            (condition,) = [each for each in status["conditions"] if each["type"] == "Speculating"]
            print(f"\nminute {minute}: {condition['reason']}: {condition['message']}")
    return {**status["speculation"], "condition": condition["status"]}


async def test_the_load_of_a_real_engine_switches_speculation_off_and_says_why(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve(**LOADED)
    await operator.reconcile()
    program = engines.real(venv)
    async with engines.running(program, str(model), decided(operator), tmp_path) as engine:
        async with loaded(engine, FEW, ALL_RIGHT):
            few = await cycles(operator, engine, FEW, [0])
        async with loaded(engine, MANY, TWO_RIGHT):
            many = await cycles(operator, engine, MANY, range(15, 35, 5))
    assert (few["enabled"], few["condition"], few["reason"]) == (True, "True", "FasterDecoding")
    assert (many["enabled"], many["condition"], many["reason"]) == (
        *(False, "False"),
        "HighConcurrency",
    )
    # A step yields three tokens, which the first drafts of each answer exceed.
    acceptance = acceptance_of(TWO_RIGHT / 8, 8)
    assert float(many["acceptance"]) == pytest.approx(acceptance, abs=0.05)
    assert " running requests it decodes 0." in many["message"]
    assert "it is on again after 24 hours" in many["message"]

    # The next cycle rolls out what the status says.
    await operator.reconcile()
    without = decided(operator)
    assert not any("spec" in word for word in without.argv), without.argv
    async with (
        engines.running(program, str(model), without, tmp_path) as engine,
        loaded(engine, FEW, ALL_RIGHT),
    ):
        page = (await engine.http.get("/metrics")).text
    assert "vllm:spec_decode" not in page
