"""Ends the processes that remain when a world was killed.

The kernel ends the direct children of a dead supervisor, but not their children. This
process outlives the supervisor by a moment: it reads the session leaders of containers from its
standard input (`+pid`, `-pid`) until the supervisor is gone, and ends what is left of them. With a
lifeline, the world also ends when its starter does, even if the supervisor hangs.

It runs as a file of its own, without the packages of the world: so it is there in an instant.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

PATIENCE_SECONDS = 30
STDIN = 0


def main(supervisor: int, homes: str, lifeline: int | None) -> None:
    leaders: set[int] = set()
    pending = b""
    watched = [STDIN] if lifeline is None else [STDIN, lifeline]
    patience: float | None = None
    while True:
        ready, _, _ = select.select(watched, [], [], patience)
        if not ready:
            os.kill(supervisor, signal.SIGKILL)
        if lifeline in ready:  # the starter is gone; the supervisor has seen it too, and ends
            watched, patience = [STDIN], PATIENCE_SECONDS
        if STDIN in ready:
            news = os.read(STDIN, 65536)
            if not news:
                break
            *lines, pending = (pending + news).split(b"\n")
            for line in lines:
                change = leaders.add if line.startswith(b"+") else leaders.discard
                change(int(line[1:]))
    kill_tree(leaders, homes)


def kill_tree(leaders: set[int], homes: str | None = None) -> None:
    """End everything that session leaders started, also what dead ones left behind.

    Members are found by session, by descent, and by a home folder that begins like this: an orphan
    keeps its session, a daemon has one of its own, and both keep their environment.
    """
    for pid in _tree(leaders, homes):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _tree(leaders: set[int], homes: str | None) -> set[int]:
    processes = list(_processes())
    running = {pid for pid, _, _ in processes}
    members = {pid for pid, _, session in processes if pid in leaders or session in leaders}
    if homes is not None:
        members |= {pid for pid in running if _lives_in(pid, f"HOME={homes}".encode())}
    while grown := {p for p, parent, _ in processes if parent in members} - members:
        members |= grown
    return members


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process id, parent and session of everything that runs."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command stands in brackets and may itself hold spaces and brackets.
        fields = stat.rpartition(")")[2].split()
        if fields[0] != "Z":
            yield int(folder.name), int(fields[1]), int(fields[3])


def _lives_in(pid: int, mark: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or belongs to another user
        return False
    return any(variable.startswith(mark) for variable in environment.split(b"\0"))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
