"""What the DNS of a cluster answers about Services, within the Python of a world's processes.

A world keeps a file with the address of each Service in a folder for its namespace; a process whose
WORLD_SERVICES is the folder of its own namespace, and that calls `resolve_services`, finds them.
"""

import re
import socket
from pathlib import Path
from typing import Any

SERVICES = "WORLD_SERVICES"
# NAME of the same namespace, NAME.NAMESPACE, and both longer forms.
_NAME = re.compile(r"([a-z0-9-]+)(?:\.([a-z0-9-]+)(\.svc(?:\.cluster\.local)?)?)?\.?")


def resolve_services(namespace: Path) -> None:
    """Let this process find Services by their names, as a pod of a namespace does."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return look_up(_address(host, namespace), port, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


def _address(host: Any, namespace: Path) -> Any:
    """Return the address of a Service, and the host itself for all other names."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    match = _NAME.fullmatch(text.lower()) if isinstance(text, str) else None
    if match is None:
        return host
    name, other, suffix = match.groups()
    try:
        folder = namespace.with_name(other) if other else namespace
        return (folder / name).read_text(encoding="ascii")
    except FileNotFoundError:
        if suffix:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        return host
