"""A real Prometheus that scrapes one engine as the one pod of a service."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tessera.resources.namespace_objects import ENGINE_METRICS
from world import binaries
from world.slots import free_port


@asynccontextmanager
async def scraped(engine: str, labels: Mapping[str, str], folder: Path) -> AsyncIterator[str]:
    """Scrape the engine at this address every two seconds, and yield the address of Prometheus."""
    program = binaries.ensure(print, ["prometheus"]) / "prometheus"
    target = {"targets": [urlsplit(engine).netloc], "labels": labels}
    keep = {"action": "keep", "source_labels": ["__name__"], "regex": ENGINE_METRICS}
    job = {"job_name": "engine", "static_configs": [target], "metric_relabel_configs": [keep]}
    seconds = dict.fromkeys(("scrape_interval", "scrape_timeout"), "2s")
    config, port = folder / "prometheus.yaml", free_port()
    config.write_text(json.dumps({"global": seconds, "scrape_configs": [job]}), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / f'prometheus-{port}'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
