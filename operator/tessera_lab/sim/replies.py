"""Small answers."""

from aiohttp import web

from tessera_lab.sim.forms import dump_json


def json_reply(body: object, status: int = 200) -> web.Response:
    """JSON."""
    return web.json_response(body, status=status, dumps=dump_json)


class UntypedResponse(web.Response):
    """A sentence without a type, as some of the engine's routes give it."""

    def __init__(self, text: str) -> None:
        super().__init__(body=text.encode())
