"""Plays all that is recorded into a folder: `python -m tests.play_records FOLDER`.

All fleets and requests are played, not only those that stand in git as text, and both databases
sum records up.
"""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.adapters.recorded_objects import object_texts
from tests.cli.recorded_calls import COLUMNS, call_texts
from tests.domain.aspects.measured_fleet import SEQUENCES, fleet_text
from tests.gateway.course.courses import courses
from tests.gateway.course.play import Play, as_json, course_text
from tests.gateway.store.recorded_sums import record_texts


def _fleets() -> Mapping[str, str]:
    return {f"{seed:03}": fleet_text(seed) for seed in range(1, SEQUENCES + 1)}


def _requests() -> Mapping[str, str]:
    return {"courses": "".join(course_text(as_json(Play(each).run())) for each in courses())}


def _calls() -> Mapping[str, str]:
    os.environ["COLUMNS"] = COLUMNS
    with tempfile.TemporaryDirectory() as inputs:
        return asyncio.run(call_texts(Path(inputs)))


def _objects() -> Mapping[str, str]:
    return asyncio.run(object_texts())


_RECORDS: Mapping[str, Callable[[], Mapping[str, str]]] = {
    "calls": _calls,
    "objects": _objects,
    "requests": _requests,
    "records": record_texts,
    "fleets": _fleets,
}


def main(folder: Path) -> None:
    """Write each record as text."""
    # Courses have what is logged as a warning, and defects.
    logging.disable(logging.CRITICAL)
    for kind, texts in _RECORDS.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, text in texts().items():
            (folder / kind / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.argv, given = ["tessera"], sys.argv[1:]
    main(Path(*given))
