"""The choice of a pool's backend: NVIDIA's mig-manager, or Tessera's agent."""

from collections.abc import Sequence

from tessera.api.mig import Mig
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.mig_manager import MigManagerBackend
from tessera.domain.mig_backends.nodes import MigNode


def backend_of(mig: Mig, nodes: Sequence[MigNode]) -> GeometryBackend:
    """Return the backend that `spec.mig` of a pool names.

    A pool without any layout plan asks nothing of it.
    """
    match mig.backend:
        case "Agent":
            return AgentBackend()
        case "MigManager":
            # Capabilities hold for the whole pool: one node without an agent makes all of them
            # drain as a whole.
            partitioned = [node for node in nodes if node.gpus and not node.unavailable]
            knows_pods = bool(partitioned) and all(node.reports_pods for node in partitioned)
            return MigManagerBackend(knows_pods=knows_pods)
