import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera.batch_runner.assemble import ResultSink
from tessera.batch_runner.errors import RefusedError, TransientError
from tessera.batch_runner.files import Link
from tessera.batch_runner.ledger import BatchCounts
from tessera.batch_runner.publish import (
    PublicationRecord,
    ResultFile,
    commit_record,
    is_published,
    publish,
    read_record,
    record_path,
    refuse_unowned,
)

# What file systems say that have no hard links.
MISSING = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS]


class KilledError(Exception):
    """The process ends here."""


@dataclass(frozen=True, slots=True)
class Place:
    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def errors(self) -> Path:
        return self.folder / "errors.jsonl"

    def record_of(self, attempt: int) -> PublicationRecord:
        """Results that this attempt assembled."""
        return PublicationRecord(
            attempt=attempt,
            output=self._sealed(f"attempt-{attempt}.output", f"answers of {attempt}\n"),
            errors=self._sealed(f"attempt-{attempt}.errors", f"errors of {attempt}\n"),
            counts=BatchCounts(completed=1, failed=1),
        )

    def published_by(self, attempt: int, link: Link = os.link) -> PublicationRecord:
        """The whole way of an attempt."""
        record = read_record(self.work) or commit_record(self.work, self.record_of(attempt), link)
        publish(self.work, record, self.output, self.errors, link)
        return record

    def texts(self) -> tuple[str, str]:
        return self.output.read_text(), self.errors.read_text()

    def _sealed(self, name: str, text: str) -> ResultFile:
        with (self.work / name).open("wb") as file:
            sink = ResultSink(file)
            sink.write(text.encode())
        return sink.result_file(name)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    found.work.mkdir()
    return found


def _without_links(number: int) -> Link:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    return link


def _killed_at(step: int, link: Link) -> Link:
    """Ends before a link, or after it: the steps count both."""
    steps = iter(range(step + 1))

    def killing(source: Path, target: Path) -> None:
        if next(steps) == step:
            raise KilledError
        link(source, target)
        if next(steps) == step:
            raise KilledError

    return killing


LINKS: list[Link] = [os.link, *map(_without_links, MISSING)]


@pytest.mark.parametrize("link", LINKS)
def test_results_get_their_names_once(place: Place, link: Link) -> None:
    record = place.published_by(1, link)
    assert place.texts() == ("answers of 1\n", "errors of 1\n")
    assert is_published(place.work, record, place.output)
    place.published_by(1, link)
    assert place.published_by(2, link).attempt == 1
    assert place.texts() == ("answers of 1\n", "errors of 1\n")


@pytest.mark.parametrize("step", range(6))
def test_an_attempt_that_ends_anywhere_is_finished_by_the_next(place: Place, step: int) -> None:
    with pytest.raises(KilledError):
        place.published_by(1, _killed_at(step, os.link))
    assert not (place.output.exists() and not place.errors.exists())
    winner = place.published_by(2).attempt
    assert winner == (2 if step == 0 else 1)
    assert place.texts() == (f"answers of {winner}\n", f"errors of {winner}\n")


def test_of_two_attempts_at_once_the_first_record_counts_for_both(place: Place) -> None:
    stale, current = place.record_of(1), place.record_of(2)
    assert commit_record(place.work, current) == current
    assert commit_record(place.work, stale) == current
    for _ in range(2):
        publish(place.work, current, place.output, place.errors)
    assert place.texts() == ("answers of 2\n", "errors of 2\n")


@pytest.mark.parametrize("link", LINKS)
def test_of_two_attempts_in_the_same_step_one_record_counts_whole(place: Place, link: Link) -> None:
    stale, current = place.record_of(1), place.record_of(2)

    def overtaken(source: Path, target: Path) -> None:
        assert commit_record(place.work, current, link) == current
        link(source, target)

    assert commit_record(place.work, stale, overtaken) == current
    assert read_record(place.work) == current
    names = {path.name for path in place.work.iterdir()}
    assert not [name for name in names if name.startswith(".")], "nothing is left beside"


def test_a_record_that_was_torn_does_not_count(place: Place) -> None:
    record_path(place.work).write_text('{"version": 1, "att')
    assert read_record(place.work) is None
    link = _without_links(errno.EPERM)
    assert place.published_by(2, link).attempt == 2
    assert place.texts() == ("answers of 2\n", "errors of 2\n")


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["output", "errors"])
def test_a_foreign_file_is_never_replaced(place: Place, link: Link, name: str) -> None:
    target: Path = getattr(place, name)
    target.write_text("mine")
    with pytest.raises(RefusedError, match="not a result of this batch"):
        refuse_unowned(place.work, place.output, place.errors)
    with pytest.raises(RefusedError, match="not a result of this batch"):
        place.published_by(1, link)
    assert target.read_text() == "mine"
    assert name == "errors" or place.errors.read_text() == "errors of 1\n"
    target.unlink()
    place.published_by(2, link)
    assert place.texts() == ("answers of 1\n", "errors of 1\n")


def test_published_results_are_known_by_their_content(place: Place) -> None:
    record = place.published_by(1, _without_links(errno.ENOTSUP))
    refuse_unowned(place.work, place.output, place.errors)
    place.output.write_text("answers of 2\n")
    assert not is_published(place.work, record, place.output)
    with pytest.raises(RefusedError):
        refuse_unowned(place.work, place.output)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("answers of ?\n")])
def test_results_that_were_damaged_are_not_published(
    place: Place, damage: Callable[[Path], object]
) -> None:
    record = commit_record(place.work, place.record_of(1))
    damage(place.work / record.output.file)
    with pytest.raises(TransientError, match=r"delete .*published.json"):
        publish(place.work, record, place.output, place.errors)
    assert not place.output.exists()


def test_a_folder_that_vanished_is_refused_and_told(place: Place) -> None:
    record = commit_record(place.work, place.record_of(1))
    gone = place.folder / "gone" / "out.jsonl"
    with pytest.raises(RefusedError, match="does not exist; correct the path"):
        publish(place.work, record, gone, gone)
