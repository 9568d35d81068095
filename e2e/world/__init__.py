"""The world on one machine: a real Kubernetes control plane with simulated nodes.

Linux only: pods and Services live on 127.0.0.0/8, of which macOS has one address.
"""

from world.client import World, start
from world.errors import WorldError

__all__ = ["World", "WorldError", "start"]
