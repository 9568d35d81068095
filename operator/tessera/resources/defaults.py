"""Versioned defaults of the pod template.

A version never changes once it was released: existing replicas keep the version that they were
created with until their owner asks for a newer one. Any change of a default is a new version at the
end of the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The defaults of one version."""

    image: str = "vllm/vllm-openai"
    """Repository of the engine; the tag is `v<version>`."""
    flags: tuple[str, ...] = (
        "--api-server-count=1",
        "--enable-server-load-tracking",
        "--enable-mfu-metrics",
    )
    """Flags of the engine that no field of the API sets."""
    limits_media: bool = True
    """Whether engines fetch media only from `spec.engine.allowedMediaDomains`."""
    reports_cached_tokens: bool = True
    """Whether engines that generate report how much of a prompt their prefix cache had. It is no
    reserved flag: `spec.engine.extraArgs` may repeat or negate it."""
    gpu_memory_utilization: float = 0.92
    """Share of the device's memory that vLLM takes; sizing uses that of the newest version."""
    pre_stop_seconds: int = 5
    """Seconds for endpoints to drop a pod before its engine receives SIGTERM."""
    exit_seconds: int = 10
    """Seconds to exit; vLLM needs 5 to 6 after its last token."""
    unreachable_seconds: int = 30
    """Seconds after which a replica on an unreachable node is replaced. A longer time loses
    capacity; a shorter time loads a model again after every network interruption."""
    start_seconds: int = 600
    """Seconds to start, in addition to the time for reading the weights."""
    host_mib: int = 4096
    """Host memory of the process itself, in MiB."""
    shm_mib: int = 2048
    """Shared memory of an engine on one device, in MiB."""
    shm_parallel_mib: int = 8192
    """Shared memory of tensor parallel ranks, which communicate through it, in MiB."""

    @property
    def stalled_grace_seconds(self) -> int:
        """Return the termination grace period of a replica whose engine has stalled."""
        # Its streams would never end; only its termination frees the waiting clients and the slice.
        return self.pre_stop_seconds + self.exit_seconds


# The defaults by version; the highest number is the newest.
DEFAULTS: dict[int, Defaults] = {
    1: Defaults(limits_media=False, reports_cached_tokens=False),
    2: Defaults(reports_cached_tokens=False),
    3: Defaults(),
}


def newest_version(table: Mapping[int, Defaults] = DEFAULTS) -> int:
    """Return the version with which new replicas are created."""
    return max(table)


def defaults(builder: int, table: Mapping[int, Defaults] = DEFAULTS) -> Defaults:
    """Return the defaults of a version; for one that a newer Tessera wrote, the newest known."""
    return table[min(builder, newest_version(table))]
