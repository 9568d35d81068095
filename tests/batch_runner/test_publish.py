import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera.batch_runner.answers.assemble import ResultSink
from tessera.batch_runner.answers.ledger import BatchCounts
from tessera.batch_runner.answers.publish import (
    PublicationRecord,
    ResultFile,
    commit_record,
    is_published,
    publish,
    read_record,
    record_path,
    refuse_unowned,
)
from tessera.batch_runner.errors import RefusedError, TransientError
from tessera.batch_runner.files import Link

# Error numbers of file systems without hard links.
MISSING = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS]


class PublisherKilledError(Exception):
    """The process ends here."""


@dataclass(frozen=True, slots=True)
class ResultFolder:
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
        """Return the record of the results that this attempt assembled."""
        return PublicationRecord(
            attempt=attempt,
            output=self._result_file(f"attempt-{attempt}.output", f"answers of {attempt}\n"),
            errors=self._result_file(f"attempt-{attempt}.errors", f"errors of {attempt}\n"),
            counts=BatchCounts(completed=1, failed=1),
        )

    def publish_attempt(self, attempt: int, link: Link = os.link) -> PublicationRecord:
        """Commit and publish the results of an attempt."""
        record = read_record(self.work) or commit_record(self.work, self.record_of(attempt), link)
        publish(self.work, record, self.output, self.errors, link)
        return record

    def texts(self) -> tuple[str, str]:
        return self.output.read_text(), self.errors.read_text()

    def _result_file(self, name: str, text: str) -> ResultFile:
        with (self.work / name).open("wb") as file:
            sink = ResultSink(file)
            sink.write(text.encode())
        return sink.result_file(name)


@pytest.fixture
def result_folder(tmp_path: Path) -> ResultFolder:
    result_folder = ResultFolder(tmp_path)
    result_folder.work.mkdir()
    return result_folder


def _without_links(number: int) -> Link:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    return link


def _killed_at(step: int, link: Link) -> Link:
    """Return a link that ends the process before a link, or after it: steps count both."""
    steps = iter(range(step + 1))

    def killing(source: Path, target: Path) -> None:
        if next(steps) == step:
            raise PublisherKilledError
        link(source, target)
        if next(steps) == step:
            raise PublisherKilledError

    return killing


LINKS: list[Link] = [os.link, *map(_without_links, MISSING)]


@pytest.mark.parametrize("link", LINKS)
def test_results_get_their_names_once(result_folder: ResultFolder, link: Link) -> None:
    record = result_folder.publish_attempt(1, link)
    assert result_folder.texts() == ("answers of 1\n", "errors of 1\n")
    assert is_published(result_folder.work, record, result_folder.output)
    result_folder.publish_attempt(1, link)
    assert result_folder.publish_attempt(2, link).attempt == 1
    assert result_folder.texts() == ("answers of 1\n", "errors of 1\n")


@pytest.mark.parametrize("step", range(6))
def test_an_attempt_that_ends_anywhere_is_finished_by_the_next(
    result_folder: ResultFolder, step: int
) -> None:
    with pytest.raises(PublisherKilledError):
        result_folder.publish_attempt(1, _killed_at(step, os.link))
    assert not (result_folder.output.exists() and not result_folder.errors.exists())
    winner = result_folder.publish_attempt(2).attempt
    assert winner == (2 if step == 0 else 1)
    assert result_folder.texts() == (f"answers of {winner}\n", f"errors of {winner}\n")


def test_of_two_attempts_at_once_the_first_record_counts_for_both(
    result_folder: ResultFolder,
) -> None:
    stale, current = result_folder.record_of(1), result_folder.record_of(2)
    assert commit_record(result_folder.work, current) == current
    assert commit_record(result_folder.work, stale) == current
    for _ in range(2):
        publish(result_folder.work, current, result_folder.output, result_folder.errors)
    assert result_folder.texts() == ("answers of 2\n", "errors of 2\n")


@pytest.mark.parametrize("link", LINKS)
def test_of_two_attempts_in_the_same_step_one_record_counts_whole(
    result_folder: ResultFolder, link: Link
) -> None:
    stale, current = result_folder.record_of(1), result_folder.record_of(2)

    def overtaken(source: Path, target: Path) -> None:
        assert commit_record(result_folder.work, current, link) == current
        link(source, target)

    assert commit_record(result_folder.work, stale, overtaken) == current
    assert read_record(result_folder.work) == current
    names = {path.name for path in result_folder.work.iterdir()}
    assert not [name for name in names if name.startswith(".")], "nothing is left beside"


def test_a_record_that_was_torn_does_not_count(result_folder: ResultFolder) -> None:
    record_path(result_folder.work).write_text('{"version": 1, "att')
    assert read_record(result_folder.work) is None
    link = _without_links(errno.EPERM)
    assert result_folder.publish_attempt(2, link).attempt == 2
    assert result_folder.texts() == ("answers of 2\n", "errors of 2\n")


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["output", "errors"])
def test_a_foreign_file_is_never_replaced(
    result_folder: ResultFolder, link: Link, name: str
) -> None:
    target: Path = getattr(result_folder, name)
    target.write_text("mine")
    with pytest.raises(RefusedError, match="not a result of this batch"):
        refuse_unowned(result_folder.work, result_folder.output, result_folder.errors)
    with pytest.raises(RefusedError, match="not a result of this batch"):
        result_folder.publish_attempt(1, link)
    assert target.read_text() == "mine"
    assert name == "errors" or result_folder.errors.read_text() == "errors of 1\n"
    target.unlink()
    result_folder.publish_attempt(2, link)
    assert result_folder.texts() == ("answers of 1\n", "errors of 1\n")


def test_published_results_are_known_by_their_content(result_folder: ResultFolder) -> None:
    record = result_folder.publish_attempt(1, _without_links(errno.ENOTSUP))
    refuse_unowned(result_folder.work, result_folder.output, result_folder.errors)
    result_folder.output.write_text("answers of 2\n")
    assert not is_published(result_folder.work, record, result_folder.output)
    with pytest.raises(RefusedError):
        refuse_unowned(result_folder.work, result_folder.output)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("answers of ?\n")])
def test_results_that_were_damaged_are_not_published(
    result_folder: ResultFolder, damage: Callable[[Path], object]
) -> None:
    record = commit_record(result_folder.work, result_folder.record_of(1))
    damage(result_folder.work / record.output.file)
    with pytest.raises(TransientError, match=r"delete .*published.json"):
        publish(result_folder.work, record, result_folder.output, result_folder.errors)
    assert not result_folder.output.exists()


def test_a_folder_that_vanished_is_refused_with_a_fix(result_folder: ResultFolder) -> None:
    record = commit_record(result_folder.work, result_folder.record_of(1))
    missing_path = result_folder.folder / "gone" / "out.jsonl"
    with pytest.raises(RefusedError, match="does not exist; correct the path"):
        publish(result_folder.work, record, missing_path, missing_path)
