"""Which addresses a world owns, so that several stand side by side."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from world.errors import WorldError

SLOTS = 32


@dataclass(frozen=True, slots=True)
class Slot:
    """Two /16 networks of the loopback range: one for pods and nodes, one for Services."""

    number: int

    @property
    def control(self) -> str:
        """The address of the control plane."""
        return self._inside(0, 1)

    @property
    def service_range(self) -> str:
        return f"127.{96 + self.number}.0.0/16"

    def node(self, index: int) -> str:
        return self._inside(0, 2 + index)

    def pod(self, index: int) -> str:
        """Addresses from x.y.1.1 upward; they come round again after 64,770 pods."""
        third, fourth = divmod(index, 254)
        return self._inside(1 + third % 255, 1 + fourth)

    @property
    def pod_prefix(self) -> str:
        return f"127.{10 + self.number}."

    def _inside(self, third: int, fourth: int) -> str:
        return f"127.{10 + self.number}.{third}.{fourth}"


@contextmanager
def free_slot() -> Iterator[Slot]:
    """Reserve a slot that no other world on this machine has, until the end of the block.

    The lock is a name in the kernel's abstract socket space, which is as wide as the loopback range
    itself (the network namespace, for every user) and disappears with its process.
    """
    for number in range(SLOTS):
        lock = socket.socket(socket.AF_UNIX)
        with lock:
            try:
                lock.bind(f"\0tessera-world-{number}")
            except OSError:
                continue
            yield Slot(number)
            return
    raise WorldError(f"all {SLOTS} address ranges are taken by running worlds")


@contextmanager
def sole_holder(lock: Path) -> Iterator[None]:
    """Hold the lock file of a world's name; it says which process does."""
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorldError(f"a world named {lock.stem} runs already") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(lock: Path) -> int | None:
    """The process that holds a lock file, if any does."""
    if not lock.exists():
        return None
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


def free_port(address: str = "0.0.0.0") -> int:
    """Return a port that only a server started by this process, or one it starts, listens on.

    The kernel chooses it. A socket that is bound and never listens keeps it until this process
    ends: no client and no other process gets it, and a server that sets SO_REUSEADDR may listen.
    Without an address it is kept on all, since some servers listen on all.
    """
    with socket.socket() as holder_socket:
        holder_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder_socket.bind((address, 0))
        port: int = holder_socket.getsockname()[1]
        holder_socket.detach()  # it stays open
    return port
