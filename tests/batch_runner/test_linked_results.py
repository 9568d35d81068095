"""Results whose folder is a symbolic link."""

import time
from pathlib import Path

from tessera.batch_runner.check import BatchPaths, check
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tests.batch_runner.harness import SERVED, Claim, a_row


def test_the_report_says_where_links_of_folders_lead(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "claim")
    (claim.folder / "real").mkdir(parents=True)
    (claim.folder / "linked").symlink_to("real")
    claim.write([a_row(1)])
    output, errors = (claim.folder / "linked" / name for name in ("o.jsonl", "e.jsonl"))
    paths = BatchPaths(input=claim.input, output=output, errors=errors, work=claim.work)
    code, report = check(paths, SERVED, WorkHeartbeat(time.monotonic))
    assert (code, report["files"]) == (0, ["real/o.jsonl", "real/e.jsonl"])


def test_an_output_that_a_link_makes_the_errors_file_is_refused(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "claim")
    (claim.folder / "real").mkdir(parents=True)
    (claim.folder / "linked").symlink_to("real")
    claim.write([a_row(1)])
    output, errors = (claim.folder / folder / "o.jsonl" for folder in ("linked", "real"))
    paths = BatchPaths(input=claim.input, output=output, errors=errors, work=claim.work)
    code, report = check(paths, SERVED, WorkHeartbeat(time.monotonic))
    assert (code, "need the same name" in report["message"]) == (3, True), report
