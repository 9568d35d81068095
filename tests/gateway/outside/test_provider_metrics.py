"""The series of providers."""

from pathlib import Path

from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.outside.asking import asking
from world.provider import refuse


async def test_the_series_of_a_provider_say_what_became_of_its_calls(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        metrics = GatewayMetrics(asked.client)
        assert b"tessera_gateway_provider_requests_total{" not in metrics.page()
        await asked.whole()
        asked.provider.script = refuse(429, retry_after="30")
        await asked.error()
        page = metrics.page().decode()
        asked.client.retain(())
        assert "acme" not in metrics.page().decode()
    for line in (
        'tessera_gateway_provider_requests_total{provider="acme",reason=""} 1.0',
        'tessera_gateway_provider_requests_total{provider="acme",reason="ProviderBusy"} 1.0',
        'tessera_gateway_provider_requests_in_flight{provider="acme"} 0.0',
        'tessera_gateway_provider_ejected{provider="acme"} 1.0',
    ):
        assert line in page
