"""Node groups for tests: how their machines come, and which nodes go."""

import asyncio
from dataclasses import dataclass

from aiohttp import web
from pydantic import ValidationError

from world.autoscaling.autoscaler import Autoscaler
from world.autoscaling.groups import GroupChange, GroupState
from world.autoscaling.notices import SIGNALS, give_notice
from world.errors import WorldError


@dataclass(frozen=True, slots=True)
class GroupControl:
    autoscaler: Autoscaler

    async def look(self, request: web.Request) -> web.Response:
        return web.json_response(self._state(request).body())

    async def change(self, request: web.Request) -> web.Response:
        """How its machines come from now on."""
        state = self._state(request)
        try:
            change = GroupChange.model_validate(await request.json())
            state.change(change, asyncio.get_running_loop().time())
        except (ValidationError, LookupError) as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.Response()

    async def disrupt(self, request: web.Request) -> web.Response:
        """Consolidate a node of a group."""
        try:
            await self.autoscaler.disrupt(request.match_info["node"])
        except WorldError as error:
            raise web.HTTPConflict(text=str(error)) from error
        return web.Response()

    async def notice(self, request: web.Request) -> web.Response:
        """Take a node back, as clouds do with spot nodes."""
        name, body = request.match_info["node"], await request.json()
        kubelets = self.autoscaler.machines.kubelets
        if name not in kubelets:
            raise web.HTTPNotFound(text=f"no live node is named {name}")
        if body["by"] not in SIGNALS:
            raise web.HTTPNotFound(text=f"{body['by']} is none of {', '.join(SIGNALS)}")
        kubelet = kubelets[name]
        await give_notice(
            self.autoscaler.api,
            self.autoscaler.tasks,
            kubelet,
            kubelet.informer.values,
            body["by"],
            body["seconds"],
        )
        return web.Response()

    def _state(self, request: web.Request) -> GroupState:
        name = request.match_info["group"]
        if name not in self.autoscaler.states:
            raise web.HTTPNotFound(text=f"no node group is named {name}")
        return self.autoscaler.states[name]
