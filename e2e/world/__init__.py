"""The world on one machine: a real Kubernetes control plane with simulated nodes.

Linux only: pods and Services live on 127.0.0.0/8, of which macOS has one address.
"""

from typing import TYPE_CHECKING, Any

from world.errors import WorldError

if TYPE_CHECKING:
    from world.client import World, start

__all__ = ["World", "WorldError", "start"]


def __getattr__(name: str) -> Any:
    """Import the client when it is used: programs are built before any package is installed."""
    if name not in __all__:
        raise AttributeError(name)
    from world import client  # noqa: PLC0415

    return getattr(client, name)
