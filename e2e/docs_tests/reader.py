"""A reader at a terminal who follows pages to the letter."""

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from docs_tests.blocks import Command, File, SkippedBlock, Step
from docs_tests.output import matches

PATIENCE_SECONDS = 600
_TESSERA_KINDS = "inferenceservices.tessera.dev,batchinferences,tenantbudgets,acceleratorpools,pods"
_SAVE_VARIABLES = '\n{ env -0 > "$READER_STATE"; } 2>/dev/null\n'


class TrialError(AssertionError):
    """A page is not correct; the text says where and what was printed."""


@dataclass(slots=True)
class SectionTime:
    """What the commands of a section took."""

    wall_seconds: float = 0
    cpu_seconds: float = 0
    """Of the commands, and of the cluster meanwhile."""

    def __add__(self, other: "SectionTime") -> "SectionTime":
        return SectionTime(
            self.wall_seconds + other.wall_seconds, self.cpu_seconds + other.cpu_seconds
        )


@dataclass(slots=True)
class Reader:
    """Keeps variables from one block to the next, as one terminal does."""

    folder: Path
    """Where the reader is; files of the page are written here."""
    variables: Mapping[str, str]
    ran: int = 0
    skipped_blocks: list[SkippedBlock] = field(default_factory=list)
    times: dict[str, SectionTime] = field(default_factory=dict)
    """By section."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def follow(self, page: str, steps: Iterable[Step]) -> None:
        """Do everything in order; TrialError at the first thing that is not as the page says."""
        for step in steps:
            match step:
                case File(name=name, text=text):
                    (self.folder / name).write_text(text, encoding="utf-8")
                case SkippedBlock():
                    self.skipped_blocks.append(step)
                case Command():
                    self._type(f"{page}:{step.line}", step)

    def time_of(self, sections: Iterable[str]) -> SectionTime:
        """Return what the commands of sections took; KeyError for one without any."""
        return sum((self.times[section] for section in sections), SectionTime())

    def reset_counts(self) -> None:
        """Count from here: what was done before belongs to another page."""
        self.ran, self.skipped_blocks = 0, []

    def clean_up(self, *command: str) -> None:
        """Clean up as far as there is anything to clean up."""
        subprocess.run(
            command, cwd=self.folder, env=dict(self.variables), capture_output=True, check=False
        )

    def _type(self, where: str, command: Command) -> None:
        begun, cpu_seconds = time.monotonic(), self._cpu_seconds()
        printed, code = self._run(command.text)
        spent = SectionTime(time.monotonic() - begun, self._cpu_seconds() - cpu_seconds)
        self.times[command.section] = self.times.get(command.section, SectionTime()) + spent
        if code:
            raise TrialError(
                f"{where}: failed with {code}:\n{command.text}\nprinted:\n{printed}\n"
                f"state of the cluster:\n{self._cluster_state()}"
            )
        if command.output is not None and not matches(command.output, printed):
            raise TrialError(
                f"{where}: the page shows\n{command.output}\nbut this was printed\n{printed}"
            )
        self.ran += 1

    def _cpu_seconds(self) -> float:
        """Return those of all commands so far, and of the cluster that the terminal points to."""
        own = sum(os.times()[2:4])
        state = Path(self.variables.get("KUBECONFIG", "none")).with_name("world.json")
        return own + _tree_seconds(json.loads(state.read_bytes())["pid"]) if state.exists() else own

    def _cluster_state(self) -> str:
        """Return the state of the cluster, as far as there is one."""
        return self._run(f"kubectl get {_TESSERA_KINDS} --all-namespaces --output wide")[0]

    def _run(self, text: str) -> tuple[str, int]:
        """Run a block in bash; it ends at the first command that fails."""
        # What an earlier block left running goes on writing into the output of that block.
        output = self.folder / f".reader-output-{next(self._numbers)}"
        state = self.folder / ".reader-state"
        # All variables are exported, so that the next block finds them.
        script = f"set -a -e -o pipefail\n{text}{_SAVE_VARIABLES}"
        with output.open("wb") as file:
            process = subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env={**self.variables, "READER_STATE": str(state)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_SECONDS,
                check=False,
            )
        if not process.returncode:
            pairs = os.fsdecode(state.read_bytes()).rstrip("\0").split("\0")
            self.variables = dict(pair.split("=", 1) for pair in pairs)
        return output.read_text(encoding="utf-8", errors="replace"), process.returncode


def _tree_seconds(root: int) -> float:
    """Return the processor seconds of a process and of all below it, also of those that ended."""
    ticks, children = dict[int, int](), defaultdict[int, list[int]](list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            pid = int(path.parent.name)
            ticks[pid] = sum(map(int, fields[11:15]))
            children[int(fields[1])].append(pid)
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += ticks.get(pid, 0)
        waiting += children[pid]
    return total / os.sysconf("SC_CLK_TCK")
