"""Runs a program as the engine's container does: another user, and only declared paths writable."""

import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("confined.sh")
# A container has these as well.
_KERNEL = ("/proc", "/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """The user, the writable paths and the environment of a container."""

    user: int
    writable: tuple[str, ...]
    env: dict[str, str]

    def words(self, readable: Iterable[Path]) -> tuple[str, ...]:
        """Return the command prefix for a program that also reads these folders."""
        readable_paths = map(str, (*readable, Path(sys.base_prefix).resolve()))
        paths = (",".join(readable_paths), ",".join(self.writable))
        own = ("unshare", "--mount", "--propagation", "private", "--")
        return (*own, "sh", str(_SCRIPT), str(self.user), *paths)


def of_pod(pod: dict[str, Any]) -> Confinement:
    """Return the confinement of a pod's engine."""
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
    """Return whether this process may mount, which needs root."""
    return os.geteuid() == 0 and sysconfig.get_platform().startswith("linux")


def writable_mounts(process: int) -> set[str]:
    """Return the mounts of a process that are not read-only."""
    mounts = set()
    for line in Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, options = line.split()[4:6]
        if "rw" in options.split(",") and not (mount in _KERNEL or mount.startswith("/proc/")):
            mounts.add(mount)
    return mounts


def user_of(process: int) -> int:
    """Return the user id of a process."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])
