"""Backends of MIG layouts, each with a simulated node that carries out its requests."""

from fakegpu.gpu_driver import GpuDriver
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.mig_manager import MigManagerBackend
from tests.builders import A100
from tests.simulated_mig_nodes import SimulatedMigNode
from world.mig_manager import MigManager as Manager

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
BACKENDS = ("mig-manager", "mig-manager that knows pods", "agent")
BackendAndNode = tuple[GeometryBackend, SimulatedMigNode]


def a_backend_and_node(name: str, *layouts: Layout) -> BackendAndNode:
    placements = [
        [(placement.profile, placement.start) for placement in layout] for layout in layouts
    ]
    gpu_driver = GpuDriver(A100, len(layouts), layouts=placements)
    if name == "agent":
        return AgentBackend(), SimulatedMigNode(
            gpu_driver=gpu_driver, has_agent=True, agent_partitions=True
        )
    has_agent = name != "mig-manager"
    node = SimulatedMigNode(gpu_driver=gpu_driver, manager=Manager(), has_agent=has_agent)
    return MigManagerBackend(knows_pods=has_agent), node


def a_layout(text: str) -> Layout:
    """Parse a layout of an A100 such as `3g@4 1g@0`."""
    names = {profile.partition(".")[0]: profile for profile in PROFILES}
    parts = (part.split("@") for part in text.split())
    return tuple(sorted(SlicePlacement(int(start), names[name]) for name, start in parts))


HALVES, SMALL, MIXED = a_layout("3g@0 3g@4"), a_layout("1g@0 1g@1 1g@2"), a_layout("4g@0 2g@4 1g@6")
