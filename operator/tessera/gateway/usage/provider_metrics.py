"""The series of outside providers: what became of the calls of this gateway."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.domain.money import NANO
from tessera.gateway.outside.client import OutsideClient


class ProviderMetrics(Collector):
    """Reads the client of providers; without one there are none."""

    def __init__(self, client: OutsideClient | None) -> None:
        self._client = client

    @override
    def collect(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "tessera_gateway_provider_requests",
            "Calls of ModelProviders that ended, by the reason of their error: empty for an "
            "answer, Cancelled where their sender gave up.",
            labels=("provider", "reason"),
        )
        in_flight = GaugeMetricFamily(
            "tessera_gateway_provider_requests_in_flight",
            "Calls at a ModelProvider.",
            labels=("provider",),
        )
        ejected = GaugeMetricFamily(
            "tessera_gateway_provider_ejected",
            "1 while a ModelProvider is asked nothing for some tenant, since it failed or refused "
            "too often.",
            labels=("provider",),
        )
        own_cost = CounterMetricFamily(
            "tessera_gateway_provider_own_cost",
            "Cost in USD of answers of ModelProviders, as these say themselves.",
            labels=("provider",),
        )
        compared_cost = CounterMetricFamily(
            "tessera_gateway_provider_compared_cost",
            "Cost in USD of the same answers by the costs in the ModelProvider.",
            labels=("provider",),
        )
        disagreed = GaugeMetricFamily(
            "tessera_gateway_provider_dialect_disagreed",
            "1 once an answer of a ModelProvider had other counts than its dialect has.",
            labels=("provider",),
        )
        if self._client is not None:
            for name, state in self._client.states.items():
                for reason, count in state.ended.items():
                    ended.add_metric((name, reason), count)
                in_flight.add_metric((name,), state.shares.taken)
                own_cost.add_metric((name,), state.meters.own_nanos / NANO)
                compared_cost.add_metric((name,), state.meters.compared_nanos / NANO)
                disagreed.add_metric((name,), state.meters.disagreed)
                ejected.add_metric((name,), bool(self._client.ejected_seconds(name)))
        yield from (ended, in_flight, ejected, own_cost, compared_cost, disagreed)
