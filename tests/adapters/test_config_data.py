"""The data of a ConfigMap; a small server takes the place of the API server."""

import pytest
from aiohttp import web

from tessera.ports import ClusterError
from tessera.resources.manifest import ObjectKey
from tests.adapters.small_server import connected_cluster

KEY = ObjectKey("configmaps", "tessera-system", "tessera-spend")


@pytest.mark.parametrize(
    ("status", "body", "data"),
    [(200, {"data": {"a": "1"}}, {"a": "1"}), (200, {"data": None}, {}), (404, {}, {})],
)
async def test_a_config_map_without_data_or_none_at_all_is_empty(
    status: int, body: dict[str, object], data: dict[str, str]
) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/api/v1/namespaces/tessera-system/configmaps/tessera-spend"
        return web.json_response(body, status=status)

    async with connected_cluster(answer) as cluster:
        assert await cluster.config_data(KEY) == data


async def test_data_that_may_not_be_read_is_an_error_and_not_empty() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"message": "forbidden"}, status=403)

    async with connected_cluster(answer) as cluster:
        with pytest.raises(ClusterError, match=r"configmaps tessera-system/tessera-spend: 403"):
            await cluster.config_data(KEY)
