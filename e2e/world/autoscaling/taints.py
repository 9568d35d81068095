"""Taints of nodes, which a patch can only replace as a whole."""

from collections.abc import Callable

from world.api import NODES, Api, ApiError, Json

ATTEMPTS = 5


async def add_taint(api: Api, name: str, key: str, value: str = "") -> None:
    """Keep pods off a node that do not tolerate it."""
    taint = {"key": key, "value": value, "effect": "NoSchedule"}
    await _change(api, name, lambda taints: [*_without(taints, key), taint])


async def remove_taint(api: Api, name: str, key: str) -> None:
    await _change(api, name, lambda taints: _without(taints, key))


def _without(taints: list[Json], key: str) -> list[Json]:
    return [taint for taint in taints if taint["key"] != key]


async def _change(api: Api, name: str, change: Callable[[list[Json]], list[Json]]) -> None:
    """Write what was read with a change, again if somebody else was faster."""
    for attempt in range(ATTEMPTS):
        node = await api.get(NODES.path(name=name))
        version = node["metadata"]["resourceVersion"]
        taints = change(node["spec"].get("taints", []))
        body = {"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}
        try:
            await api.patch(NODES.path(name=name), body)
        except ApiError as error:
            if error.status != 409 or attempt == ATTEMPTS - 1:
                raise
        else:
            return
