"""KWOK for the nodes whose pods are only said to run."""

from pathlib import Path

from world.control_plane import ControlPlane
from world.folders import MANIFESTS
from world.slots import free_port


def kwok(plane: ControlPlane, kubeconfig: Path) -> list[str]:
    """Return the command line: without the selector of its nodes or without stages, KWOK exits."""
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
