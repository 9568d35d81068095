"""What the command of the demos says before it starts anything."""

import fcntl
from pathlib import Path

import pytest

from demo import command


def test_a_second_demo_says_that_another_will_write_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    with report.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert command.run(["--report", str(report)]) == 1
    assert capsys.readouterr().err == (
        f"demo: another demo runs, and will write {report}; wait until it has ended, or name "
        "another file: make demo REPORT=FILE\n"
    )


@pytest.mark.parametrize(
    ("report", "reason"),
    [(".", "Is a directory"), ("missing/report.html", "No such file or directory")],
)
def test_a_report_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, reason: str
) -> None:
    assert command.run(["--report", str(tmp_path / report)]) == 1
    assert f"cannot be written: {reason}; name another file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
