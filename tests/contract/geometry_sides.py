"""Backends of MIG layouts, each with the far end that carries out what it asks for."""

from fakegpu.gpu_driver import GpuDriver
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.mig_manager import MigManagerBackend
from tests.builders import A100
from tests.simulated_mig_nodes import FarEnd
from world.mig_manager import MigManager as Manager

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
SIDES = ("mig-manager", "mig-manager that knows pods", "agent")
Side = tuple[GeometryBackend, FarEnd]


def a_side(name: str, *layouts: Layout) -> Side:
    made = [[(spot.profile, spot.start) for spot in layout] for layout in layouts]
    gpu_driver = GpuDriver(A100, len(layouts), layouts=made)
    if name == "agent":
        return AgentBackend(), FarEnd(gpu_driver=gpu_driver, tells=True, cuts=True)
    tells = name != "mig-manager"
    far = FarEnd(gpu_driver=gpu_driver, manager=Manager(), tells=tells)
    return MigManagerBackend(knows_pods=tells), far


def a_layout(text: str) -> Layout:
    """`3g@4 1g@0` of an A100."""
    names = {profile.partition(".")[0]: profile for profile in PROFILES}
    parts = (part.split("@") for part in text.split())
    return tuple(sorted(SlicePlacement(int(start), names[name]) for name, start in parts))


HALVES, SMALL, MIXED = a_layout("3g@0 3g@4"), a_layout("1g@0 1g@1 1g@2"), a_layout("4g@0 2g@4 1g@6")
