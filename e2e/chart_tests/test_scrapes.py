"""What the real Prometheus keeps of engines' pages, and what the operator reads of it."""

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web

from tessera.adapters.clock import now
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import union_query
from tessera.adapters.prometheus.speeds import SPEEDS
from tessera.domain.observed.snapshot import PodReading, Ref
from tessera.ports import MetricsError
from tests.prometheus import running_prometheus, served_pages
from world.prometheus import configuration
from world.slots import Slot
from world.testing import eventually

HONEST = """\
vllm:num_requests_waiting 3
vllm:num_requests_running 2
vllm:cache_config_info{kv_cache_size_tokens="777"} 1
"""
FORGED = """\
vllm:num_requests_waiting{namespace="team-a",pod="chat-0",tessera_dev_service="chat"} 900
tessera_cost_as_of_timestamp_seconds{job="tessera-system/tessera-operator"} 4102444800
DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace="team-a",pod="chat-0"} 1
"""
SIZES = "".join(
    f'vllm:cache_config_info{{kv_cache_size_tokens="{size}"}} 1\n' for size in range(15_000)
)
PAGES = {
    ("team-a", "chat-0"): HONEST,
    ("evil", "forger"): FORGED,
    ("evil", "sizes"): SIZES,
    ("evil", "flood"): HONEST + SIZES + SIZES.replace("cache_config_info", "flood"),
    ("evil", "label"): f'{HONEST}vllm:e{{long="{"x" * 2000}"}} 1\n',
}
CHAT = Ref("team-a", "chat-0")


@contextlib.asynccontextmanager
async def scraped_pages(folder: Path) -> AsyncIterator[PrometheusMetrics]:
    """Yield the Prometheus that scrapes these pages as a PodMonitor of engines says."""

    async def page(request: web.Request) -> web.Response:
        _, namespace, pod = request.path.split("/")
        return web.Response(text=PAGES[namespace, pod], headers={"Content-Type": "text/plain"})

    async with (
        served_pages(page) as address,
        running_prometheus(folder, _engines_job(folder, address)) as url,
    ):
        yield PrometheusMetrics(url, now)


def _engines_job(folder: Path, address: str) -> dict[str, Any]:
    slot = cast(Slot, SimpleNamespace(pod_prefix="127.", control="127.0.0.1"))
    config = configuration(slot, folder / "kubeconfig", 1)
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "engines")
    del job["kubernetes_sd_configs"], job["relabel_configs"]
    job["static_configs"] = [
        {
            "targets": [address],
            "labels": {
                "namespace": namespace,
                "pod": pod,
                "tessera_dev_service": "chat",
                "tessera_dev_variant": "a100",
                "__metrics_path__": f"/{namespace}/{pod}",
            },
        }
        for namespace, pod in PAGES
    ]
    return config | {"scrape_configs": [job]}


async def test_what_one_page_shows_is_kept_apart_and_within_limits(tmp_path: Path) -> None:
    async with scraped_pages(tmp_path) as metrics:

        async def pages_are_read() -> None:
            try:
                counts = await metrics.count_series(["up == 1", "up == 0"])
            except MetricsError as error:
                raise AssertionError("Prometheus starts") from error
            assert counts == {"up == 1": 3, "up == 0": 2}, "the flood and the label are refused"
            readings = await metrics.read()
            assert readings.problem is None
            assert readings.pods.get(CHAT) == PodReading(waiting=3, running=2)
            assert {pod.name for pod in readings.pods} == {"chat-0", "forger"}
            speeds = readings.speeds.get(Ref("team-a", "chat"), ())
            assert [speed.kv_tokens for speed in speeds] == [777]

        await eventually(pages_are_read)
        speeds = union_query(SPEEDS)
        assert (await metrics.count_series([speeds]))[speeds] < 20
        foreign = ("{__name__=~'tessera_.*'}", "{__name__=~'DCGM_.*'}", 'up{namespace="team-a"}')
        assert list((await metrics.count_series(foreign)).values()) == [0, 0, 1]
        pods = ["team-a/chat-0", "evil/sizes", "evil/flood"]
        assert (await metrics.last_seen(pods, timedelta(minutes=5))).keys() == set(pods[:2])
