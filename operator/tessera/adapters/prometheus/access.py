"""Access to Prometheus: the operator's own series, and credentials from files."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tessera.adapters.prometheus.queries import SERVICE

_TOKEN = re.compile(r"[!-~]+")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([ -~]*)")
# Kubernetes limits a Secret to 1 MiB; no proxy accepts headers that long.
_MAX_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusAccess:
    """How Prometheus is queried; files are read for each query, so a renewed token counts."""

    namespace: str = "tessera-system"
    """Namespace of the operator, in which Prometheus scrapes it."""
    job: str = ""
    """Label `job` of the operator's own series; empty means that of the chart's PodMonitor."""
    gpu_job: str = ""
    """Label `job` of the DCGM exporters whose energy counts; empty means any."""
    secret_directory: Path | None = None
    """Files `token`, `username` and `password`, `headers`, `ca.crt`; each may be missing."""
    token_file: Path | None = None
    """Bearer token, instead of that in the directory."""
    ca_file: Path | None = None
    """Certificate authority, instead of that in the directory."""

    @property
    def own_target(self) -> str:
        """Return the label matchers that no series of a tenant has."""
        job = self.job or f"{self.namespace}/tessera-operator"
        return f'job="{_escaped(job)}",namespace="{_escaped(self.namespace)}"'

    @property
    def gpu_target(self) -> str:
        """Return the label matchers of the exporters of GPUs, which no page of an engine has."""
        job = f',job="{_escaped(self.gpu_job)}"' if self.gpu_job else ""
        return f'UUID!="",{SERVICE}=""{job}'

    @property
    def gateway_target(self) -> str:
        """Return the label matchers of the gateways' series, which no series of a tenant has."""
        return f'namespace="{_escaped(self.namespace)}",{SERVICE}=""'

    @property
    def ca(self) -> Path | None:
        """Return the file of the certificate authority; None means the public ones."""
        return self.ca_file or self._secret("ca.crt")

    def headers(self) -> dict[str, str]:
        """Return the headers of a query; OSError or ValueError, without a secret in its text."""
        headers: dict[str, str] = {}
        if headers_file := self._secret("headers"):
            headers.update(_header_lines(headers_file))
        if username := self._secret("username"):
            password = self._secret("password")
            credentials = f"{_read(username)}:{_read(password) if password else ''}"
            headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        if token_file := self.token_file or self._secret("token"):
            token = _read(token_file)
            if not _TOKEN.fullmatch(token):
                raise ValueError(f"{token_file}: not a bearer token")
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _secret(self, name: str) -> Path | None:
        path = self.secret_directory / name if self.secret_directory else None
        return path if path and path.is_file() else None


def _header_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        match = _HEADER.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}: line {number} is not 'Name: value'")
        yield match[1], match[2]


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_CHARACTERS).strip()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
