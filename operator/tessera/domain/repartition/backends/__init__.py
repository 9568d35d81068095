"""Who cuts GPUs: NVIDIA's mig-manager, Tessera's own agent, or nobody."""

from collections.abc import Sequence

from tessera.api.mig import Mig
from tessera.domain.repartition.backend import GeometryBackend
from tessera.domain.repartition.backends.agent import Agent
from tessera.domain.repartition.backends.mig_manager import MigManager
from tessera.domain.repartition.backends.static import Static
from tessera.domain.repartition.facts import Ground


def backend_of(mig: Mig, grounds: Sequence[Ground]) -> GeometryBackend:
    """The one that a pool names. With mig-manager every node has to tell its pods, or none does:
    whoever empties a node where one GPU would do hurts more, and not more than was said."""
    if mig.mode == "static" and not mig.layout:
        return Static()
    if mig.backend == "agent":
        return Agent()
    cut = [ground for ground in grounds if ground.cards]
    return MigManager(knows_pods=bool(cut) and all(ground.tells_pods for ground in cut))
