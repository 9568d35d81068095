"""KWOK for the nodes whose pods are only said to run."""

from pathlib import Path

from world.control_plane import ControlPlane
from world.places import MANIFESTS
from world.slots import free_port


def kwok(plane: ControlPlane, kubeconfig: Path) -> list[str]:
    """It must be told which nodes are its own, and it exits without stages."""
    address = plane.slot.control
    return [
        str(plane.binaries / "kwok"),
        f"--kubeconfig={kubeconfig}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        f"--node-lease-duration-seconds={plane.beats.lease_seconds}",
        f"--server-address={address}:{free_port(address)}",
        f"--config={MANIFESTS / 'kwok-stages.yaml'}",
        "--v=WARN",
    ]
