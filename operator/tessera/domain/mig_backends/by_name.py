"""Who cuts GPUs: NVIDIA's mig-manager, Tessera's own agent, or nobody."""

from collections.abc import Sequence

from tessera.api.mig import Mig
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.mig_manager import MigManagerBackend
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.mig_backends.static import StaticBackend


def backend_of(mig: Mig, nodes: Sequence[MigNode]) -> GeometryBackend:
    """The one that a pool names. With mig-manager every node has to tell its pods, or none does:
    whoever empties a node where one GPU would do hurts more, and not more than was said."""
    if mig.mode == "static" and not mig.layout:
        return StaticBackend()
    if mig.backend == "agent":
        return AgentBackend()
    partitioned = [node for node in nodes if node.gpus]
    return MigManagerBackend(
        knows_pods=bool(partitioned) and all(node.reports_pods for node in partitioned)
    )
