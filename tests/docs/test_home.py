"""The table of figures on the home page."""

import json
from dataclasses import replace
from pathlib import Path

from home_page import ROWS, missed, table


def test_a_goal_that_is_just_kept_is_met_and_what_is_missed_comes_first(tmp_path: Path) -> None:
    for file in {row.file for row in ROWS}:
        goals = {row.name: row.goal for row in ROWS if row.file == file}
        worse = {"rss_mib": 301} if "rss_mib" in goals else {"sim_requests_per_cpu_s": 2999}
        text = json.dumps({"services": 2000} | goals | worse)
        (tmp_path / file).write_text(text, encoding="ascii")
    lines = table(tmp_path).splitlines()
    assert lines[0].startswith(f"{len(ROWS) - 2} of these {len(ROWS)} goals were met, **2 were")
    assert [line.split(" | ")[1] for line in lines if "**missed**" in line] == ["301 MiB", "2,999"]
    assert all("missed" in line for line in lines[4:6])


def test_a_goal_of_at_least_is_missed_below_it() -> None:
    row = replace(ROWS[0], goal=10, at_least=True)
    assert [missed(row, value) for value in (9, 10, 11)] == [True, False, False]
