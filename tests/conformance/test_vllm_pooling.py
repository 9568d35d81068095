"""Pooling models on a real vLLM on the CPU, with the arguments that Tessera gives their engines."""

import asyncio
import re
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tessera.adapters.engine_client import HttpEngines
from tessera.api.model_files import ModelShape, PoolingTask
from tessera.batch_runner.model.hub import open_repository
from tessera.batch_runner.model.jobs import shape
from tessera.domain.model.paths import own_paths
from tessera.resources.arguments import arguments
from tessera.resources.defaults import Defaults
from tests.batch_runner.harness import SERVED, RunnerHarness, a_row
from tests.builders import a_pod, a_service, a_snapshot, a_spec, a_workload, plan_of, readings_of
from tests.clients.running import offered
from tests.conformance import engines, pooling_models
from tests.conformance.configurations import Configuration
from tests.gateway.harness import KEY, a_directory
from tests.gateway.test_gateway_process import a_process

pytestmark = pytest.mark.vllm

NAME = SERVED.name
# What scaling, speed and usage are read from.
_METRICS = re.compile(
    r"^vllm:(?:prompt_tokens_total|generation_tokens_total|time_to_first_token_seconds_count"
    r"|request_success_total|iteration_tokens_total_count|cache_config_info|kv_cache_usage_perc"
    r"|request_generation_tokens_(?:sum|count)|inter_token_latency_seconds_count).*$",
    re.MULTILINE,
)
BODIES: dict[str, Any] = {
    "input": ["a tessera", "is one tile of a mosaic"],
    "query": "what is a tessera",
    "documents": ["a tile", "a mosaic of tiles"],
    "text_1": "what is a tessera",
    "text_2": ["a tile", "a mosaic of tiles"],
}
_FIELDS = {
    "rerank": ("query", "documents"),
    "score": ("text_1", "text_2"),
}


def body_of(path: str) -> dict[str, Any]:
    fields = _FIELDS.get(path.rpartition("/")[2], ("input",))
    return {"model": NAME, **{field: BODIES[field] for field in fields}}


async def shape_read(folder: Path) -> dict[str, Any]:
    """What the Job reads of the files on a volume."""
    repository = open_repository(None, None, "")
    code, report = await shape("pvc://weights/model", folder, repository)
    assert code == 0, report
    return cast("dict[str, Any]", report["shape"])


def arguments_of(read_shape: dict[str, Any]) -> list[str]:
    """The arguments of the engine of such a service, without model and port."""
    flags = ["--enforce-eager", "--dtype=bfloat16"]
    spec = a_spec(
        model={"uri": "pvc://weights/model", "shape": read_shape},
        context={"typicalInputTokens": 64},
        engine={"loader": {"type": "Dummy"}, "extraArgs": flags},
    )
    pods = (a_pod(),)
    snapshot = a_snapshot(
        a_service(spec=spec), pods=pods, workloads=(a_workload(1),), readings=readings_of(pods)
    )
    [plan] = plan_of(snapshot).service_plans.values()
    assert plan.choice is not None, plan.placement
    args = arguments(NAME, spec, plan.choice, Defaults())[1:]
    return [word for word in args if not word.startswith("--port=")]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bge-m3", "Embed"),
        ("bge-reranker-v2-m3", "Score"),
        ("classifier", "Classify"),
        ("Qwen3-Embedding", "Embed"),
    ],
)
async def test_a_real_engine_and_the_simulator_are_ready_by_the_probe_of_their_model(
    name: str, task: PoolingTask, venv: Path, model: Path, tmp_path: Path
) -> None:
    folder = pooling_models.make(name, model, tmp_path / name)
    read_shape = await shape_read(folder)
    assert ModelShape.model_validate(read_shape).pooling == task
    configuration = Configuration(name=name, argv=tuple(arguments_of(read_shape)))
    seen = []
    for program in (engines.real(venv), engines.simulator()):
        async with engines.running(program, str(folder), configuration, tmp_path) as engine:
            client = HttpEngines()
            assert await client.probe(engine.url, NAME, task) is None
            assert "404" in str(await client.probe(engine.url, NAME))
            await client.close()
            seen.append(await _answers(engine.http, task))
            metrics = (await engine.http.get("/metrics")).text
            print(f"\n{name}:", *_METRICS.findall(metrics), sep="\n")
            async with a_process(tmp_path, a_directory(offered(engine, NAME))) as gateway:
                await _ask_gateway(gateway.url, task)
            if task == "Embed":
                await asyncio.to_thread(_run_batch, engine.url, tmp_path / f"batch-{len(seen)}")
        assert 'vllm:time_to_first_token_seconds_count{engine="0"' in metrics
    real, simulated = seen
    assert real == simulated


async def _answers(http: httpx.AsyncClient, task: PoolingTask) -> dict[str, tuple[int, list[str]]]:
    """Status and fields of the answer on each path of the gateway that computes."""
    answers = {}
    for path in ("/v1/chat/completions", *own_paths("Embed"), "/classify"):
        answer = await http.post(path, json=body_of(path))
        fields = sorted(answer.json()) if answer.status_code == 200 else []
        assert (path, answer.status_code == 200) == (path, path in own_paths(task))
        if fields:
            assert answer.json()["usage"]["prompt_tokens"] > 0
        answers[path] = (answer.status_code, fields)
    return answers


async def _ask_gateway(url: str, task: PoolingTask) -> None:
    path = own_paths(task)[0]
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = await client.post(path, json=body_of(path), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] > 0


def _run_batch(url: str, folder: Path) -> None:
    """Answer rows of a batch by the engine, with the runner as a process."""
    harness = RunnerHarness(folder)
    try:
        harness.engine_port = int(url.rpartition(":")[2])
        body = {"input": BODIES["input"]}
        harness.write_checked_input(
            *(a_row(row, url="/v1/embeddings", body=body) for row in range(20))
        )
        runner_exit = harness.start(1).wait_for_exit()
        assert (runner_exit.code, runner_exit.report.get("completed")) == (0, 20), runner_exit
        assert runner_exit.report["promptTokens"] > 0
        assert runner_exit.report["outputTokens"] == 0
        answers = [answer["response"]["body"] for answer in harness.claim.answers()]
        assert [len(answer["data"]) for answer in answers] == [2] * 20
    finally:
        harness.close()
