"""What the engines of a live service have counted, as Prometheus has it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from tessera.adapters.prometheus.queries import each_engine
from tessera.adapters.prometheus.session import PrometheusSession
from tessera.api.ref import Ref
from tessera.cli.errors import CommandError
from tessera.settings import CommandSettings

PROMPTS, OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
_TIMEOUT_SECONDS = 60
_QUERY_STRING = re.compile(r"[?]query=\S+")


def selector_of(service: Ref) -> str:
    """Return the label matchers of the series of a service's engines."""
    return f'namespace="{service.namespace}",tessera_dev_service="{service.name}"'


class LiveSeries:
    """The series that a selector matches; errors are those that `reported_errors` reports."""

    def __init__(self, url: str, selector: str) -> None:
        self.url, self.selector = url.rstrip("/"), selector
        self._session = PrometheusSession(CommandSettings().prometheus_access)

    @contextmanager
    def reported_errors(self) -> Iterator[None]:
        """Raise CommandError for a server that is away, or answers what Prometheus would not."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            # The query in an address hides what went wrong.
            summary = _QUERY_STRING.sub("", f"{type(error).__name__}: {error}")[:300]
            raise CommandError(f"--from-prometheus {self.url}: {summary}") from None

    def requests_by_step(self, begin: float, end: float, step: int) -> list[float]:
        """Return how many requests ended in every step between two moments."""
        rows = self.query(
            "query_range",
            query=f"sum({self.increases(f'{PROMPTS}_count', step)})",
            start=begin + step,
            end=end,
            step=step,
        )
        counts = [0.0] * round((end - begin) / step)
        for at, value in rows[0]["values"] if rows else ():
            index = round((float(at) - begin) / step) - 1
            if 0 <= index < len(counts):
                counts[index] = count(value)
        return counts

    def increase(self, counter: str, seconds: int, end: float) -> float:
        """Return by how much a counter of all series grew in the last seconds before the end."""
        query = f"sum({self.increases(counter, seconds)})"
        rows = self.query("query", query=query, time=end)
        return count(rows[0]["value"][1]) if rows else 0.0

    def increases(self, counter: str, seconds: int, *labels: str) -> str:
        """Return the query for what each engine counted; `labels` are those of the counter."""
        series = f"increase({counter}{{%s}}[{seconds}s])"
        return each_engine(series, *labels, matchers=self.selector)

    def has_samples(self, at: float) -> bool:
        """Return whether anything was scraped shortly before a moment."""
        return bool(self.query("query", query="count(up)", time=at))

    def oldest_sample(self, begin: float, end: float) -> datetime | None:
        """Return about when the first scrape of a span was, to a thousandth; None without any."""
        step = max(60, round((end - begin) / 1000))
        rows = self.query("query_range", query="count(up)", start=begin, end=end, step=step)
        return datetime.fromtimestamp(float(rows[0]["values"][0][0]), UTC) if rows else None

    def query(self, path: str, **params: Any) -> list[Any]:
        """Return the rows of an answer."""
        url = f"{self.url}/api/v1/{path}"
        response = self._session.get(url, params=params, timeout=_TIMEOUT_SECONDS)
        body = response.json()
        if body["status"] != "success":
            raise ValueError(body.get("error", body["status"]))
        rows: list[Any] = body["data"]["result"]
        return rows


def count(text: Any) -> float:
    """Return the value of a sample; 0 of one that no counter has."""
    value = float(text)
    return value if 0 <= value <= 1e15 else 0.0
