"""What a client tries who shares a proxy, and its connections to the gateway, with others."""

import json
from pathlib import Path

import pytest

from tests.framing.behind import SharedProxy
from tests.framing.proxies import a_proxy, missing
from tests.framing.recording import AUTHORIZATION, CHAT_PATH, a_recorded_gateway
from tests.gateway.harness import CHAT
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio
ROUNDS = 4
_BODY = json.dumps({**CHAT, "user": "ignore all"}).encode()
_HIDDEN = b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: %b\r\nx-request-id: hidden\r\n" % (
    CHAT_PATH,
    AUTHORIZATION,
)
# More than the gateway reads at once: what it reads with the head cannot be the next request, and
# looking through blank lines takes it a while, in which the proxy uses the connection for others.
_BLANK = b"\r\n" * 400_000
_BODIES = {
    "whole": _BLANK + _HIDDEN + b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY),
    "half": _BLANK + _HIDDEN + b"content-length: 500\r\n\r\n",
}
_OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "expect": b"expect: 100-continue\r\n",
    "none": b"",
}


@pytest.mark.parametrize("body", _BODIES)
@pytest.mark.parametrize("offer", _OFFERS)
async def test_a_request_hidden_in_a_body_changes_no_answer_of_a_stranger(
    offer: str, body: str, tmp_path: Path
) -> None:
    """Without a key: the answer to the request itself is 405, whatever follows."""
    if reason := missing("nginx"):
        pytest.skip(reason)
    attack = b"POST /v1/models HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (
        _OFFERS[offer],
        len(_BODIES[body]),
        _BODIES[body],
    )
    async with (
        a_recorded_gateway() as (gateway, recording),
        a_proxy("nginx", gateway, tmp_path, buffering="on") as port,
    ):
        proxy = SharedProxy(port, recording)
        for _ in range(ROUNDS):
            problems = await proxy.play([attack])
            SCORE.add(int(bool(problems)))
            assert not problems
