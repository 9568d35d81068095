"""The load of a service in the last days, by the operator's own series; no server runs."""

from datetime import timedelta
from typing import Any

import pytest

from tessera.adapters.prometheus.load import read_load
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.api.ref import Ref
from tessera.domain.economics.reservation import LoadCurve
from tessera.ports import MetricsError
from tests.builders import NOW

CHAT = Ref("team-a", "chat")


class LoadSeries:
    """Answers the range query for the load with these values, 5 minutes apart."""

    def __init__(self, *values: str) -> None:
        self.rows: list[dict[str, Any]] = []
        if values:
            moments = (NOW.timestamp() + 300 * index for index in range(len(values)))
            self.rows = [{"metric": {}, "values": list(zip(moments, values, strict=False))}]
        self.arguments: tuple[Any, ...] = ()

    def custom_query_range(self, *arguments: Any, timeout: float) -> list[dict[str, Any]]:
        self.arguments = (*arguments, timeout)
        return self.rows


def metrics_of(series: LoadSeries) -> PrometheusMetrics:
    metrics = PrometheusMetrics("http://unused", lambda: NOW)
    metrics._client = series
    return metrics


async def test_the_load_is_what_the_operator_wanted_in_a_week() -> None:
    series = LoadSeries("2", "3", "3", "0", "2", "3")
    curve = await read_load(metrics_of(series), CHAT, NOW)
    assert curve == LoadCurve(((300.0, 0), (600.0, 2), (900.0, 3)))
    query, start, end, step, timeout = series.arguments
    own = (
        'job="tessera-system/tessera-operator",namespace="tessera-system",'
        'exported_namespace="team-a"'
    )
    assert query == (
        f'max(tessera_service_desired_replicas{{{own},service="chat",exported_service=""}} or '
        f'tessera_service_desired_replicas{{{own},exported_service="chat"}})'
    )
    # A person waits no longer than for readings.
    assert (end - start, step, timeout) == (timedelta(days=7), "300s", 3)


@pytest.mark.parametrize("value", ["-1", "1001", "NaN", "+Inf"])
async def test_numbers_that_no_service_has_are_no_load(value: str) -> None:
    assert await read_load(metrics_of(LoadSeries("2", value)), CHAT, NOW) == LoadCurve(
        ((300.0, 2),)
    )
    assert await read_load(metrics_of(LoadSeries(value)), CHAT, NOW) is None


async def test_without_a_sample_the_load_is_not_known() -> None:
    assert await read_load(metrics_of(LoadSeries()), CHAT, NOW) is None


async def test_a_prometheus_that_is_away_is_an_error() -> None:
    with pytest.raises(MetricsError, match="ConnectionError"):
        await read_load(PrometheusMetrics("http://127.0.0.1:9", lambda: NOW), CHAT, NOW)
