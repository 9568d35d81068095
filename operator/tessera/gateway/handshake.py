"""TLS of a client: its connection counts before it can send a request."""

import asyncio
from typing import Any

from typing_extensions import override

from tessera.gateway.connections import GatewayServerState
from tessera.gateway.protocol import HEADER_SECONDS, GatewayProtocol


class TlsProtocol(asyncio.Protocol):
    """A connection until its handshake is over; a GatewayProtocol has it then.

    asyncio's own server would show its connection to nobody before that, for a minute.
    """

    def __init__(self, server_state: GatewayServerState, **options: Any) -> None:
        self._state = server_state
        self._http = GatewayProtocol(server_state=server_state, **options)
        self._early = b""
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it is one
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._state.clients.add(self, peer[0] if peer else "")
        # The handshake reads from its first byte on.
        transport.pause_reading()
        self._task = asyncio.create_task(self._shake_hands(transport))

    @override
    def data_received(self, data: bytes) -> None:
        self._early += data

    def abort(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        context = self._state.tls
        assert context is not None  # noqa: S101 - there would be no handshake
        try:
            if transport.is_closing():
                return
            tls = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HEADER_SECONDS,
            )
        except OSError:
            return
        finally:
            self._state.clients.remove(self)
        # None or closed if the client was gone meanwhile.
        if tls is None or tls.is_closing():
            return
        tls.set_protocol(self._http)
        self._http.connection_made(tls)
        if self._early:
            self._http.data_received(self._early)
