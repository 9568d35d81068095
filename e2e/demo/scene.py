"""Scenes of a demo: they play at the same time, and are told one after the other."""

import asyncio
import textwrap
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import aiohttp
import httpx
import openai

from demo.cluster import InstalledCluster, StepError
from demo.recorded import RecordedStep
from world import WorldError
from world.api import ApiError

_WIDTH = 100
# Characters of a moment before a line.
_STAMP = 10
# What a scene meets when the cluster does not answer as it should.
_FAILURES = (
    StepError,
    WorldError,
    ApiError,
    aiohttp.ClientError,
    httpx.HTTPError,
    openai.OpenAIError,
    OSError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One step of a demo."""

    title: str
    expected: str
    """What one is about to see, in one sentence."""
    play: Callable[[InstalledCluster], Awaitable[str]]
    """Returns what was seen, in one sentence; raises if that is not what is expected."""


# Scenes of a chain need each other and play in order; chains share nothing and play at once.
Chain = Sequence[Scene]


@dataclass(slots=True)
class Narrator:
    """Prints the lines of scenes in the order of the scenes, each line as soon as it may."""

    scenes: Sequence[Scene]
    seconds: Callable[[], float]
    """Since the begin of the run."""
    write: Callable[[str], None]
    width: int
    """Characters of a line; pictures and tables are as they are."""
    _lines: list[list[str]] = field(init=False)
    _ended: set[int] = field(default_factory=set)
    _current: int = -1

    def __post_init__(self) -> None:
        self._lines = [[] for _ in self.scenes]
        self._advance()

    def say(self, number: int, text: str) -> None:
        """Print what a scene says, or keep it until the scenes before it have ended."""
        line = self._wrapped(f"[{self.seconds():5.1f} s] {text}")
        if number == self._current:
            self.write(line)
        else:
            self._lines[number].append(line)

    def end(self, number: int, seen: str) -> None:
        """Print what was seen in a scene at its end, and go on to the next."""
        self.say(number, f"Seen: {seen}")
        self._ended.add(number)
        if number == self._current:
            self._advance()

    def fail(self, number: int) -> None:
        """Print what a scene has said that will not come to its end."""
        if number != self._current:
            self._show(number)

    def _advance(self) -> None:
        """Show scenes up to the first that goes on."""
        while self._current + 1 < len(self.scenes):
            self._current += 1
            self._show(self._current)
            if self._current not in self._ended:
                break

    def _show(self, number: int) -> None:
        scene = self.scenes[number]
        self.write(f"\n{number + 1}/{len(self.scenes)} {scene.title}")
        self.write(self._wrapped(f"Watch: {scene.expected}"))
        for line in self._lines[number]:
            self.write(line)

    def _wrapped(self, text: str) -> str:
        if "\n" in text:
            return text
        indent = " " * _STAMP
        return textwrap.fill(
            text,
            self.width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


async def play(
    cluster: InstalledCluster,
    acts: Sequence[Sequence[Chain]],
    write: Callable[[str], None] = print,
    width: int = _WIDTH,
) -> tuple[RecordedStep, ...]:
    """Play acts one after the other, the chains of each at once.

    StepError when a scene does not show what is expected; all others are ended then.
    """
    notebook = cluster.notebook
    scenes = [scene for act in acts for chain in act for scene in chain]
    narrator = Narrator(scenes, lambda: notebook.seconds, write, width)
    steps: dict[int, RecordedStep] = {}
    if any(len(act) > 1 for act in acts):
        write("Scenes that share nothing play at once, so times may step back between two scenes.")

    async def play_chain(chain: Chain, first: int) -> None:
        for number, scene in enumerate(chain, start=first):
            steps[number] = await _play_scene(cluster, scene, number, narrator)

    first = 0
    for act in acts:
        try:
            async with asyncio.TaskGroup() as tasks:
                for chain in act:
                    tasks.create_task(play_chain(chain, first))
                    first += len(chain)
        except* StepError as failed:
            # What fails after the first does so because that ended the others.
            raise failed.exceptions[0] from None
    return tuple(steps[number] for number in sorted(steps))


async def _play_scene(
    cluster: InstalledCluster, scene: Scene, number: int, narrator: Narrator
) -> RecordedStep:
    begun = cluster.notebook.seconds
    try:
        seen = await scene.play(replace(cluster, say=lambda text: narrator.say(number, text)))
    except _FAILURES as error:
        narrator.fail(number)
        seen = str(error) if isinstance(error, StepError) else f"{type(error).__name__}: {error}"
        raise StepError(
            f"step {number + 1}, {scene.title}: expected: {scene.expected} Seen: {seen}"
        ) from error
    narrator.end(number, seen)
    return RecordedStep(
        title=scene.title,
        expected=scene.expected,
        seen=seen,
        from_s=round(begun, 1),
        until_s=round(cluster.notebook.seconds, 1),
    )
