"""What the builder puts into pods without being told, by version.

A version never changes once it was released: replicas that were made by it are built by it until
their owner asks for more. A change of anything here is a new version at the end of the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The rules of one version."""

    image: str = "vllm/vllm-openai"
    """Repository of the engine; the tag is `v<version>`."""
    flags: tuple[str, ...] = (
        "--api-server-count=1",
        "--enable-server-load-tracking",
        "--enable-mfu-metrics",
    )
    """Flags that no field decides."""
    gpu_memory_utilization: float = 0.92
    """Share of the device that the engine takes; sizing reckons with that of the newest version."""
    pre_stop_seconds: int = 5
    """Time for endpoints to forget a pod before its engine is told to stop."""
    exit_seconds: int = 10
    """vLLM needs 5 to 6 seconds to exit after its last token."""
    unreachable_seconds: int = 30
    """A replica on a node that does not answer is replaced so soon. Whoever waits for it longer
    loses capacity, whoever waits less loads a model anew for every hiccup of a network."""
    start_seconds: int = 600
    """Time to start, beside that for reading the weights."""
    host_mib: int = 4096
    """Memory of the process itself."""
    shm_mib: int = 2048
    """Shared memory of an engine on one device."""
    shm_parallel_mib: int = 8192
    """That of tensor parallel ranks, which talk through it."""

    @property
    def stalled_grace_seconds(self) -> int:
        """For a replica whose engine stands still: its streams would not end in any time, and only
        its end frees the clients that wait, and the slice."""
        return self.pre_stop_seconds + self.exit_seconds


# The rules by version; the highest number is the newest.
DEFAULTS: dict[int, Defaults] = {1: Defaults()}


def newest_version(table: Mapping[int, Defaults] = DEFAULTS) -> int:
    """The version by which new replicas are built."""
    return max(table)


def defaults(builder: int, table: Mapping[int, Defaults] = DEFAULTS) -> Defaults:
    """The rules of a version; of one that a newer Tessera made, the newest that are known."""
    return table[min(builder, newest_version(table))]
