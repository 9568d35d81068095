"""A network that is silent: what other nodes sent to a process, and what they send, is dropped."""

import ctypes
import os
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from tessera.domain.names import ENGINE
from world import World

_PIDFD_GETFD = 438
_ATTACH_FILTER, _DETACH_FILTER = 26, 27
_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def silence_network(world: World, gateway_pid: int, node: str) -> list[socket.socket]:
    """Cut a node off: its kubelet from the API, its engines from the gateway.

    The kernel drops what comes at the gateway's connections to it, acknowledgments among it, and
    new connections to its engines, so that nothing is closed and nothing answers. Returns the
    sockets of the engines, to which `end_silence` lets connections through again.
    """
    world.silence(node)
    addresses = {
        each.address for each in world.containers() if (each.node, each.container) == (node, ENGINE)
    }
    listening = []
    for process_socket in _sockets(gateway_pid):
        if _peer(process_socket) in addresses:
            _drop_all(process_socket)
        process_socket.close()
    for process_socket in _sockets(world.pid):
        is_listening = process_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if is_listening and process_socket.getsockname()[0] in addresses:
            _drop_all(process_socket)
            listening.append(process_socket)
        else:
            process_socket.close()
    return listening


def end_silence(world: World, node: str, listening: Collection[socket.socket]) -> None:
    """Bring the node back."""
    for process_socket in listening:
        process_socket.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
        process_socket.close()
    world.wake(node)


def _sockets(pid: int) -> Iterator[socket.socket]:
    """Return duplicates of the TCP sockets of another process."""
    process = os.pidfd_open(pid)
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            number = _SYSCALL(_PIDFD_GETFD, process, int(link.name), 0)
            if number < 0:
                # It was closed meanwhile.
                continue
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                os.close(number)
                continue
            duplicate = socket.socket(fileno=number)
            if (duplicate.family, duplicate.type) == (socket.AF_INET, socket.SOCK_STREAM):
                yield duplicate
            else:
                duplicate.close()
    finally:
        os.close(process)


def _peer(process_socket: socket.socket) -> str:
    try:
        return str(process_socket.getpeername()[0])
    except OSError:
        return ""


def _drop_all(process_socket: socket.socket) -> None:
    # BPF_RET: of each packet, 0 bytes are let through.
    instruction = _Instruction(0x06, 0, 0, 0)
    program = _Program(1, ctypes.pointer(instruction))
    process_socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(program))
