import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tessera.batch import report
from tessera.batch.rows import Fault
from tessera.batch.scan import Found

TEXTS = st.text(max_size=2000)
FAULTS = st.builds(
    Found,
    st.integers(1, 10**9),
    st.builds(Fault, code=st.sampled_from(["invalid_json"]), message=TEXTS, param=TEXTS),
)


@given(TEXTS, st.lists(FAULTS, max_size=20))
def test_a_report_always_fits_and_keeps_its_first_errors(message: str, faults: list[Found]) -> None:
    errors = report.errors(faults)
    content = report.encoded({"phase": "check", "errors": errors, "message": message})
    assert len(content) <= report.LARGEST
    kept = json.loads(content)
    assert kept["errors"] == errors[: len(kept["errors"])]


def test_a_report_that_fits_is_kept_whole() -> None:
    whole = {"phase": "run", "state": "completed", "rows": 10**9, "message": "the results are in x"}
    assert json.loads(report.encoded(whole)) == whole


def test_a_report_that_cannot_be_written_is_no_second_failure(tmp_path: Path) -> None:
    report.write(tmp_path / "none" / "report", {"phase": "run"})
