"""Runs a program as the engine's container does: another user, and only declared paths writable."""

import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("confined.sh")
# A container has them as well.
_KERNEL = ("/proc", "/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a container says of itself."""

    user: int
    writable: tuple[str, ...]
    env: dict[str, str]

    def words(self, readable: Iterable[Path]) -> tuple[str, ...]:
        """What to put before a program that needs these folders, too."""
        seen = map(str, (*readable, Path(sys.base_prefix).resolve()))
        paths = (",".join(seen), ",".join(self.writable))
        own = ("unshare", "--mount", "--propagation", "private", "--")
        return (*own, "sh", str(_SCRIPT), str(self.user), *paths)


def of_pod(pod: dict[str, Any]) -> Confinement:
    """The confinement of a pod's engine."""
    container = pod["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = container["volumeMounts"]
    return Confinement(
        user=pod["securityContext"]["runAsUser"],
        writable=tuple(mount["mountPath"] for mount in mounts if not mount.get("readOnly")),
        env={
            variable["name"]: variable["value"]
            for variable in container["env"]
            if "value" in variable
        },
    )


def possible() -> bool:
    """Mounts need root."""
    return os.geteuid() == 0 and sysconfig.get_platform().startswith("linux")


def writable_mounts(process: int) -> set[str]:
    """Where a process could write, if only its user may."""
    places = set()
    for line in Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8").splitlines():
        place, options = line.split()[4:6]
        if "rw" in options.split(",") and not (place in _KERNEL or place.startswith("/proc/")):
            places.add(place)
    return places


def user_of(process: int) -> int:
    """As whom a process runs."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])
