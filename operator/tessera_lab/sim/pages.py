"""`/openapi.json` and the pages that show it."""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from tessera_lab.sim.launch import VERSION
from tessera_lab.sim.replies import json_reply
from tessera_lab.sim.routes.plain import SCALE_OUT

OPENAPI = "/openapi.json"
_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc")
_UNLISTED = (OPENAPI, *_PAGES, *SCALE_OUT, "/sim/")


def pages(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """Routes that tell of the others."""
    document = _openapi(routes)

    async def openapi(_: web.Request) -> web.Response:
        return json_reply(document)

    async def page(request: web.Request) -> web.Response:
        link = f'<a href="{OPENAPI}">{OPENAPI}</a>'
        text = f"<!doctype html><title>{request.path}</title><p>{link}</p>"
        return web.Response(text=text, content_type="text/html")

    return [web.get(OPENAPI, openapi), *(web.get(path, page) for path in _PAGES)]


def _openapi(routes: Iterable[web.RouteDef]) -> dict[str, Any]:
    """The routes with their methods; their bodies are not described."""
    paths: dict[str, dict[str, Any]] = {}
    answers = {"responses": {"200": {"description": "Successful Response"}}}
    for route in routes:
        if not route.path.startswith(_UNLISTED):
            paths.setdefault(route.path, {})[route.method.lower()] = answers
    info = {"title": "tessera-sim", "version": VERSION}
    return {"openapi": "3.1.0", "info": info, "paths": paths}
