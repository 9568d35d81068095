"""A real Prometheus that scrapes one engine as the one pod of a service."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tessera.resources.namespace_objects import ENGINE_METRICS
from tests.prometheus import running_prometheus


@asynccontextmanager
async def scraped(engine: str, labels: Mapping[str, str], folder: Path) -> AsyncIterator[str]:
    """Scrape the engine at this address every two seconds, and yield the address of Prometheus."""
    target = {"targets": [urlsplit(engine).netloc], "labels": labels}
    keep = {"action": "keep", "source_labels": ["__name__"], "regex": ENGINE_METRICS}
    job = {"job_name": "engine", "static_configs": [target], "metric_relabel_configs": [keep]}
    seconds = dict.fromkeys(("scrape_interval", "scrape_timeout"), "2s")
    config = {"global": seconds, "scrape_configs": [job]}
    async with running_prometheus(folder, config) as url:
        yield url
