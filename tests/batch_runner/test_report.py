import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner.check import error_list
from tessera.batch_runner.input.rows import RowFault
from tessera.batch_runner.input.scan import LineFault
from tessera.batch_runner.progress import MAX_REPORT_BYTES, encode_report, write_report

TEXTS = st.text(max_size=2000)
FAULTS = st.builds(
    LineFault,
    st.integers(1, 10**9),
    st.builds(RowFault, code=st.sampled_from(["invalid_json"]), message=TEXTS, param=TEXTS),
)


@given(TEXTS, st.lists(FAULTS, max_size=20))
def test_a_report_always_fits_and_keeps_its_first_errors(
    message: str, faults: list[LineFault]
) -> None:
    errors = error_list(faults)
    content = encode_report({"phase": "check", "errors": errors, "message": message})
    assert len(content) <= MAX_REPORT_BYTES
    report = json.loads(content)
    assert report["errors"] == errors[: len(report["errors"])]


def test_a_report_that_fits_is_written_whole() -> None:
    whole = {"phase": "run", "state": "completed", "rows": 10**9, "message": "the results are in x"}
    assert json.loads(encode_report(whole)) == whole


def test_a_report_that_cannot_be_written_is_no_second_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "none" / "report"
    write_report(path, {"phase": "run"})
    assert caplog.messages == [f"cannot write the report to {path}: No such file or directory"]
