"""Real proxies before the gateway, with connections to it that they keep for all their clients."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from world.folders import cache, sole_maker
from world.slots import free_port
from world.testing import eventually

_SECONDS = 60
CADDY = "v2.11.9"

# As ingress-nginx: it passes on what asks for an upgrade at every location.
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    client_body_buffer_size 1m; client_max_body_size 0;
    client_header_timeout 3s; client_body_timeout 3s; lingering_timeout 1s;
    location / {{
      proxy_pass http://gateway; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_request_buffering {buffering}; proxy_next_upstream off;
    }}
  }}
}}
"""
HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 3s
  timeout server 60s
  timeout http-request 3s
frontend clients
  bind 127.0.0.1:{port}
  default_backend gateway
backend gateway
  http-reuse always
  server gateway 127.0.0.1:{gateway} pool-max-conn 1
"""
CADDYFILE = """
{{
  admin off
  auto_https off
  persist_config off
  servers {{
    protocols h1
    timeouts {{
      read_header 3s
      read_body 3s
    }}
  }}
}}
http://:{port} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{gateway} {{
    transport http {{
      keepalive_idle_conns 1
      versions 1.1
    }}
  }}
}}
"""


def missing(name: str) -> str | None:
    """Say why a proxy cannot run here, if it cannot."""
    if name == "caddy":
        return None if shutil.which("go") else "Caddy is built by go, which is not on PATH"
    return None if shutil.which(name) else f"{name} is not on PATH: apt-get install {name}"


@asynccontextmanager
async def a_proxy(name: str, gateway: int, folder: Path, **values: str) -> AsyncIterator[int]:
    """Run `nginx`, `haproxy` or `caddy` before a port; return the port of the proxy."""
    port = free_port()
    text = {"nginx": NGINX, "haproxy": HAPROXY, "caddy": CADDYFILE}[name]
    config = folder / "config"
    config.write_text(text.format(folder=folder, port=port, gateway=gateway, **values))
    program = str(await asyncio.to_thread(_caddy)) if name == "caddy" else name
    arguments = {
        "nginx": ("-p", str(folder), "-e", f"{folder}/start.log", "-c", str(config)),
        "haproxy": ("-db", "-f", str(config)),
        "caddy": ("run", "--config", str(config), "--adapter", "caddyfile"),
    }[name]
    with (folder / "output.log").open("wb") as output:
        environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdout=output, stderr=output, env=environment
        )
    try:

        async def listens() -> None:
            if process.returncode is not None:
                raise RuntimeError((folder / "output.log").read_text())
            with socket.socket() as connection:
                assert connection.connect_ex(("127.0.0.1", port)) == 0

        await eventually(listens, within=_SECONDS)
        yield port
    finally:
        if process.returncode is None:
            process.kill() if name == "caddy" else process.terminate()
        await process.wait()


def _caddy() -> Path:
    """Build Caddy once, with the modules that its version pins."""
    folder = cache() / "bin" / f"caddy-{CADDY}"
    folder.mkdir(parents=True, exist_ok=True)
    with sole_maker(folder, lambda _: None):
        if not (folder / "caddy").exists():
            package = f"github.com/caddyserver/caddy/v2/cmd/caddy@{CADDY}"
            environment = os.environ | {"CGO_ENABLED": "0", "GOBIN": str(folder)}
            subprocess.run(["go", "install", "-trimpath", package], env=environment, check=True)
    return folder / "caddy"
