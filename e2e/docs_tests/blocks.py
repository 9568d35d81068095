"""The blocks of a page, as a reader who follows it would run them.

A ```sh block is typed in, and a ```text block right after it is its output. A titled block
is written to a file of that name. Blocks in other languages are not run.
`<!-- not run: reason -->` above a block says why it is skipped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

SHELL = "sh"
OUTPUT = "text"
_FENCE = re.compile(r"^```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]+)\")?$")
_COMMENT = re.compile(r"^<!-- not run: (?P<reason>.+) -->$")


class PageError(Exception):
    """A page that cannot be run as it is written; the text says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command to type, and its output where the page shows it."""

    line: int
    section: str
    text: str
    output: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to write."""

    line: int
    section: str
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedBlock:
    """A block to type that is not run, with the reason."""

    line: int
    section: str
    text: str
    reason: str


Step: TypeAlias = Command | File | SkippedBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block and its surroundings on the page."""

    line: int
    section: str
    language: str
    title: str | None
    reason: str | None
    text: str
    follows: bool
    """Only empty lines separate it from the block before."""


def read_steps(page: str) -> list[Step]:
    """Return everything that a reader of the page does, in order."""
    steps: list[Step] = []
    before: Block | None = None
    for block in read_blocks(page):
        if block.reason is not None:
            steps.append(_skipped_block(block, block.reason))
        elif block.title is not None:
            steps.append(
                File(line=block.line, section=block.section, name=block.title, text=block.text)
            )
        elif block.language == SHELL:
            steps.append(Command(line=block.line, section=block.section, text=block.text))
        elif block.language == OUTPUT:
            if not _is_output(block, before):
                raise PageError(f"line {block.line}: there is no command right before this output")
            steps.append(_command_with_output(steps.pop(), block.text))
        before = block
    return steps


def read_blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks; PageError for an indented block, since it would be overlooked."""
    lines = enumerate(page.splitlines(), 1)
    section, reason, follows, previous = "", None, False, ""
    for number, line in lines:
        if (fence := _FENCE.match(line)) is not None:
            text = _block_text(lines, number)
            yield Block(
                line=number,
                section=section,
                language=fence["language"],
                title=fence["title"],
                reason=reason,
                text=text,
                follows=follows,
            )
            reason, follows, previous = None, True, ""
            continue
        if line.startswith("```"):
            raise PageError(f"line {number}: this fence is not understood: {line}")
        if line.startswith("    ") and not previous.strip():
            raise PageError(f"line {number}: an indented block; fence it, so that it is run")
        if line.startswith("#"):
            section = line.lstrip("#").strip()
        if (comment := _COMMENT.match(line)) is not None:
            reason = comment["reason"]
        elif line.strip():
            reason, follows = None, False
        previous = line


def _block_text(lines: Iterator[tuple[int, str]], opened: int) -> str:
    text: list[str] = []
    for _, line in lines:
        if line == "```":
            return "\n".join(text) + "\n"
        text.append(line)
    raise PageError(f"line {opened}: this block is never closed")


def _is_output(block: Block, before: Block | None) -> bool:
    return (
        block.follows
        and before is not None
        and before.language == SHELL
        and before.reason is None
        and before.title is None
    )


def _skipped_block(block: Block, reason: str) -> SkippedBlock:
    return SkippedBlock(line=block.line, section=block.section, text=block.text, reason=reason)


def _command_with_output(step: Step, output: str) -> Command:
    assert isinstance(step, Command)
    return Command(line=step.line, section=step.section, text=step.text, output=output)
