"""The certificate of a worker, which changes while it serves."""

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.requests.admission import Admission
from tessera.gateway.requests.app import GatewayApp
from tessera.gateway.server import GatewayServer, listen
from tests.gateway.harness import KeyIdentifier, LocalAccounts
from world.keys import Authority, Pair
from world.testing import eventually

ADDRESS = "127.0.0.1"


def write(folder: Path, certificate: Pair, key: Pair) -> None:
    shutil.copy(key.key, folder / "tls.key")
    shutil.copy(certificate.certificate, folder / "tls.crt")


def serial_of(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes()).serial_number


async def shown_serial(port: int, trusted: ssl.SSLContext) -> int:
    _, writer = await asyncio.open_connection(ADDRESS, port, ssl=trusted)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).serial_number


async def test_a_renewed_certificate_is_used_and_a_wrong_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "keys")
    first, second = authority.server("first", ADDRESS), authority.server("second", ADDRESS)
    trusted = ssl.create_default_context(cafile=str(authority.own.certificate))
    write(tmp_path, first, first)
    engines = EngineSession(1)
    app = GatewayApp(
        Admission(KeyIdentifier(), LocalAccounts().borrow, lambda: None), engines, lambda _: None
    )
    server = GatewayServer(app, announce_seconds=0, drain_seconds=1, tls_directory=tmp_path)
    listener = listen(ADDRESS, 0)
    port = listener.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    renewing = asyncio.create_task(server.renew_certificate(tmp_path, every_seconds=0.01))

    async def is_refused() -> None:
        assert "cannot be used" in caplog.text

    async def is_renewed() -> None:
        assert await shown_serial(port, trusted) == serial_of(second)

    try:
        assert await shown_serial(port, trusted) == serial_of(first)
        write(tmp_path, second, first)
        await eventually(is_refused)
        assert await shown_serial(port, trusted) == serial_of(first)
        write(tmp_path, second, second)
        await eventually(is_renewed)
    finally:
        renewing.cancel()
        server.should_exit = True
        await serving
        await engines.close()
