import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.batch_runner.answers import parts
from tessera.batch_runner.check import BatchPaths, check
from tessera.batch_runner.errors import StorageRefusedError, TransientError, storage_error
from tessera.batch_runner.files import MAX_IDLE_FOLDER
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input import manifest
from tests.batch_runner.harness import SERVED, Claim, RunnerHarness, a_row

pytestmark = pytest.mark.long


def _claim(folder: Path, rows: int = 3) -> Claim:
    claim = Claim(folder)
    claim.write(map(a_row, range(rows)))
    return claim


def _check(claim: Claim, **paths: Path) -> tuple[int, str]:
    """The exit code, and the message of a refusal."""
    path_fields = {
        "input": claim.input,
        "output": claim.output,
        "errors": claim.errors,
        "work": claim.work,
        **paths,
    }
    code, report = check(BatchPaths(**path_fields), SERVED, WorkHeartbeat(time.monotonic))
    assert report["phase"] == "check"
    assert report["ok"] is (code == 0)
    return code, report.get("message", "")


def test_a_valid_input_leaves_a_manifest_and_nothing_else(tmp_path: Path) -> None:
    claim = _claim(tmp_path, rows=1500)
    assert _check(claim) == (0, "")
    input_manifest = manifest.load(claim.work)
    assert (input_manifest.rows, input_manifest.bytes) == (1500, claim.input.stat().st_size)
    assert [shard.first_row for shard in input_manifest.shards] == [0, 1000]
    assert [path.name for path in claim.work.iterdir()] == ["manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tessera", "in.jsonl"]


def test_an_input_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    claim = _claim(tmp_path)
    code, said = _check(claim, input=tmp_path / "none.jsonl")
    assert (code, "does not exist; correct the path" in said) == (3, True)
    code, said = _check(claim, input=tmp_path)
    assert (code, "not a regular file" in said) == (3, True)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    claim = _claim(tmp_path)
    code, said = _check(claim, output=tmp_path / "none" / "out.jsonl")
    assert (code, "none: it does not exist; correct the path or create it" in said) == (3, True)
    code, said = _check(claim, errors=tmp_path / "failed" / "left.jsonl")
    assert (code, "failed: it does not exist; correct the path or create it" in said) == (3, True)
    code, said = _check(claim, output=claim.input / "out.jsonl")
    assert (code, "is not a folder" in said) == (3, True)
    code, said = _check(claim, work=claim.input / "work")
    assert (code, "is not a folder" in said) == (3, True)


def test_another_output_is_never_overwritten(tmp_path: Path) -> None:
    claim = _claim(tmp_path)
    claim.output.write_text("mine")
    code, said = _check(claim)
    assert (code, "exists and is not a result of this batch" in said) == (3, True)
    assert _check(claim, output=claim.input)[0] == 3
    claim.output.rename(claim.errors)
    code, said = _check(claim)
    assert (code, "errors.jsonl exists and is not a result" in said) == (3, True)
    claim.errors.unlink()
    claim.output.symlink_to(tmp_path / "nowhere")
    assert _check(claim)[0] == 3


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl/left.jsonl"])
def test_results_that_would_be_one_file_are_refused(tmp_path: Path, name: str) -> None:
    claim = _claim(tmp_path)
    code, said = _check(claim, errors=tmp_path / name)
    assert (code, "set spec.errors to another path" in said) == (3, True)


def test_names_that_nothing_can_have_are_refused(tmp_path: Path) -> None:
    claim = _claim(tmp_path)
    for name in ("output", "errors"):
        code, said = _check(claim, **{name: tmp_path / ("x" * 256)})
        assert (code, "shorten the path" in said) == (3, True)


@pytest.mark.parametrize("create", [os.mkfifo, Path.mkdir])
def test_an_input_or_a_result_that_is_no_file_is_refused(
    tmp_path: Path, create: Callable[[Path], object]
) -> None:
    claim = _claim(tmp_path)
    create(path := tmp_path / "special")
    for name in ("input", "output", "errors"):
        code, said = _check(claim, **{name: path})
        assert code == 3
        expected = "not a regular file" if name == "input" else "is not a result of this batch"
        assert expected in said


def test_a_file_for_another_model_is_refused_with_its_lines_and_the_fix(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    claim.write([a_row(0, body={"model": "gpt-4o-mini"}), a_row(1, body={"model": "gpt-4o"})])
    code, said = _check(claim)
    assert code == 3
    assert '1 invalid row, first line 2: model is "gpt-4o"' in said
    assert "spec.modelAliases" in said


def test_an_output_on_another_volume_is_refused(tmp_path: Path) -> None:
    other = Path("/dev/shm")  # noqa: S108 - another volume on every Linux
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other volume")
    code, said = _check(_claim(tmp_path), output=other / f"out-{os.getpid()}.jsonl")
    assert (code, "use the same volume" in said) == (3, True)


@pytest.mark.parametrize("other", [[a_row(8)], [a_row(7), {"custom_id": "no-body"}], []])
def test_a_changed_input_is_waited_for_once_rows_of_it_were_answered(
    tmp_path: Path, other: list[dict[str, Any]]
) -> None:
    claim = _claim(tmp_path)
    assert _check(claim)[0] == 0
    claim.write([a_row(7)])
    assert _check(claim)[0] == 0
    assert manifest.load(claim.work).rows == 1
    parts.parts_folder(claim.work).mkdir()
    parts.part_path(claim.work, 0, 1).touch()
    assert _check(claim)[0] == 0
    claim.write(other)
    code, said = _check(claim)
    assert (code, "Put the checked file back" in said) == (1, True)
    claim.write([a_row(7)])
    assert _check(claim)[0] == 0


def test_a_batch_with_paid_rows_whose_status_was_erased_outlives_its_volumes_trouble(
    tmp_path: Path,
) -> None:
    claim = _claim(tmp_path)
    assert _check(claim)[0] == 0
    parts.parts_folder(claim.work).mkdir()
    parts.part_path(claim.work, 0, 1).touch()
    code, said = _check(claim, output=tmp_path / "none" / "out.jsonl")
    assert (code, "none: it does not exist" in said) == (1, True)
    claim.output.write_text("mine")
    assert _check(claim)[0] == 0, "its attempts publish once the file is moved"


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.EROFS, StorageRefusedError, "volume is read-only"),
        (errno.EACCES, StorageRefusedError, "fsGroup"),
        (errno.EPERM, StorageRefusedError, "fsGroup"),
        (errno.EXDEV, StorageRefusedError, "same volume"),
        (errno.ENOSPC, TransientError, "volume is full"),
        (errno.EDQUOT, TransientError, "volume is full"),
        (errno.EIO, TransientError, "next attempt retries"),
        (errno.ESTALE, TransientError, "next attempt retries"),
    ],
)
def test_an_error_of_the_volume_says_what_to_do(
    number: int, kind: type[Exception], advice: str
) -> None:
    error = storage_error(OSError(number, os.strerror(number)), Path("/claim/x"), "write")
    assert type(error) is kind
    assert advice in str(error)
    assert str(error).startswith("cannot write /claim/x: ")


def test_the_process_reports_faults_with_their_lines(harness: RunnerHarness) -> None:
    harness.claim.write([a_row(1), "{", a_row(1), a_row(3, body={"stream": True}), a_row(4)])
    ended = harness.check()
    assert ended.code == 3
    report = ended.report
    assert (report["ok"], report["rows"], report["errorCount"]) == (False, 5, 3)
    assert [(error["line"], error["code"]) for error in report["errors"]] == [
        (2, "invalid_json"),
        (3, "duplicate_custom_id"),
        (4, "stream_not_supported"),
    ]
    assert set(report["errors"][0]) == {"line", "code", "message", "param"}
    assert "3 invalid rows, first line 2" in report["message"]
    assert "Traceback" not in ended.log_text


def test_the_report_of_a_valid_file_says_what_it_will_take(harness: RunnerHarness) -> None:
    harness.claim.write(map(a_row, range(4)))
    ended = harness.check()
    assert ended.code == 0
    assert ended.report.items() >= {"phase": "check", "ok": True, "rows": 4}.items()
    assert ended.report["url"] == "/v1/chat/completions"
    assert ended.report["inputTokens"] > 0


def test_memory_does_not_grow_with_a_row_of_200_megabytes(harness: RunnerHarness) -> None:
    harness.claim.write([a_row(1)])
    with harness.claim.input.open("r+b") as file:
        file.seek(200 * 10**6)
        file.write(b"\n" + json.dumps(a_row(2)).encode())
    ended = harness.check()
    assert ended.code == 3
    assert [(error["line"], error["code"]) for error in ended.report["errors"]] == [
        (2, "row_too_large")
    ]
    assert ended.rss_mib < 150


def test_a_full_volume_is_a_transient_error(harness: RunnerHarness) -> None:
    harness.claim.write(map(a_row, range(20_000)))
    ended = harness.check(fsize=1000)
    assert (ended.code, ended.report["ok"]) == (1, False)
    assert "raise the limit" in ended.report["message"]
    assert "Traceback" not in ended.log_text


def test_folders_of_other_batches_are_swept_when_nothing_wrote_to_them_for_long(
    tmp_path: Path,
) -> None:
    claim = _claim(tmp_path)
    names = [f"0000000{number}-1111-2222-3333-444444444444" for number in range(3)]
    idle, live, written = (claim.work.parent / name for name in names)
    other = claim.work.parent / "notes"
    for folder in (idle, live, written, other):
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "shard-0.attempt-1.jsonl").write_text("{}")
    link = claim.work.parent / "00000009-1111-2222-3333-444444444444"
    link.symlink_to(other)
    old = time.time() - MAX_IDLE_FOLDER.total_seconds() - 60
    for folder in (idle, written, other):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (old, old))
    (written / "parts" / "shard-0.attempt-1.jsonl").write_text("{}{}")
    assert _check(claim) == (0, "")
    assert {path.name for path in claim.work.parent.iterdir()} == {
        *(live.name, written.name, other.name, link.name, claim.work.name)
    }
