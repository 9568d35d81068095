"""What is seen of 600 requests is what it was: a recut changes nothing but what it names.

Every seventh stands in `recorded/` as text, and a digest of each in `recorded.json`, which
`--update-golden` write. `make compare-records` shows what differs of all of them.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RunningPhase
from tessera.domain.gateway.usage_record import Phase
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError
from tests.gateway.course.building import CHAT_PATH
from tests.gateway.course.courses import courses, parts_as_text
from tests.gateway.course.failures import FAILURES, stream_events, whole_events
from tests.gateway.course.paths import STREAMING
from tests.gateway.course.placements import PLACEMENTS
from tests.gateway.course.play import Play, as_json, course_text
from tests.text_records import check_texts

_RECORDED = Path(__file__).parent / "recorded.json"
_TEXTS = Path(__file__).parent / "recorded"
# No process writes it of itself: it stands in what is kept for the case that it is killed.
_OF_PARTIAL_RECORDS = {RequestReason.GATEWAY_KILLED}
_OF_PROVIDERS = {
    RequestReason.PROVIDER_UNREACHABLE,
    RequestReason.PROVIDER_BUSY,
    RequestReason.PROVIDER_FAILED,
    RequestReason.PROVIDER_TIMEOUT,
    RequestReason.PROVIDER_REFUSED,
    RequestReason.PROVIDER_KEY_REFUSED,
    RequestReason.PROVIDER_MODEL_NOT_FOUND,
    RequestReason.CONTENT_FILTERED,
}

_BESIDE = "alone", "of two"

Played = Mapping[str, Any]


@pytest.fixture(scope="module")
def texts() -> Mapping[str, str]:
    """Return what each course shows, by its name."""
    return {course.name: as_json(Play(course).run()) for course in courses()}


@pytest.fixture(scope="module")
def played(texts: Mapping[str, str]) -> Mapping[str, Played]:
    return {name: json.loads(text) for name, text in texts.items()}


def test_what_is_seen_of_requests_stays(
    texts: Mapping[str, str], pytestconfig: pytest.Config
) -> None:
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}
    if pytestconfig.getoption("--update-golden"):
        lines = [f"{json.dumps(name)}: {json.dumps(digest)}" for name, digest in digests.items()]
        _RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    recorded = json.loads(_RECORDED.read_text(encoding="utf-8"))
    names = [*recorded, *(digests.keys() - recorded.keys())]
    assert [name for name in names if digests.get(name) != recorded.get(name)] == []


def test_what_is_seen_of_some_requests_stays_as_text(
    texts: Mapping[str, str], pytestconfig: pytest.Config
) -> None:
    parts = {
        part: "".join(course_text(texts[name]) for name in names)
        for part, names in parts_as_text().items()
    }
    check_texts(_TEXTS, parts, pytestconfig)


def test_each_course_has_a_name_of_its_own_and_leaves_nothing(
    played: Mapping[str, Played],
) -> None:
    assert len(played) == len(courses()) > 600
    for name, record in played.items():
        last = record["readings"][-1]
        seen = last["running"], last["held_bytes"], last["demand"], last["queued"], last["awaiting"]
        assert seen == ([], 0, {}, {}, {}), name
        counted = [replica["requests"] for replica in last["replicas"].values()]
        assert not any(counted), name


# --- that nothing is missing


def test_each_reason_comes_up(played: Mapping[str, Played]) -> None:
    reasons = {
        *(record["reason"] for _, record in _records(played)),
        *(code for code in _codes(played)),
    }
    expected = {
        reason if reason in reasons else RequestError(reason, *"abcdefgh").code
        for reason in set(RequestReason)
        - _OF_PARTIAL_RECORDS
        - _OF_PROVIDERS
        - {RequestReason.INTERNAL_ERROR}
    }
    assert expected - reasons == set()
    assert RequestReason.INTERNAL_ERROR in reasons
    partial = {
        record["reason"]
        for played_course in played.values()
        for reading in played_course["readings"]
        for record in reading["partial"]
    }
    assert partial == _OF_PARTIAL_RECORDS


def test_each_route_is_answered_in_each_placement(played: Mapping[str, Played]) -> None:
    for path in PATHS:
        for kind in ("whole", "stream") if path in STREAMING else ("whole",):
            for placement in PLACEMENTS:
                *_, record = _by_start(played[f"{path} {kind} {placement}"])
                seen = record["path"], record["stream"], record["tenant"]
                assert seen == (path, kind == "stream", "team-a"), (path, kind, placement)
                assert (record["queue_ns"] > 0) is (placement in ("queued", "sheddable", "batch"))


def test_streams_go_on_elsewhere(played: Mapping[str, Played]) -> None:
    resumed = {
        (record["path"], name.rpartition(" ")[2])
        for name, record in _records(played)
        if record["resumed"]
    }
    continued = "/v1/chat/completions", "/v1/completions"
    assert {(path, how) for path in continued for how in ("resumed", "moved")} <= resumed
    assert {record["unchecked_joints"] for _, record in _records(played)} == {0, 1}


def test_clients_leave_wherever_a_request_may_be(played: Mapping[str, Played]) -> None:
    phases = {
        reading["running"][-1]["phase"] if reading["running"] else None
        for name, record in played.items()
        if name.startswith("gone ")
        for reading in record["readings"]
        if reading["why"].endswith((": close", ": reset"))
    }
    assert phases == {None, *RunningPhase}
    assert {record["phase"] for _, record in _records(played)} == set(Phase)


def test_engines_fail_wherever_an_answer_may_be(played: Mapping[str, Played]) -> None:
    kinds = {"stream": stream_events(CHAT_PATH), "whole": whole_events(CHAT_PATH)}
    for kind, places in kinds.items():
        for place in places:
            for failure in FAILURES:
                name = f"engine {failure} {place}, {CHAT_PATH} {kind}"
                (alone,), (_,) = (_by_start(played[f"{name}, {beside}"]) for beside in _BESIDE)
                is_whole = place in ("after the last event", "after its end")
                # The gateway itself ends what an engine that is lost has said but for its end.
                is_whole |= place == "before the last event" and failure != "nonsense"
                assert (alone["phase"] == Phase.COMPLETED) is is_whole, name


def _records(played: Mapping[str, Played]) -> Iterator[tuple[str, Any]]:
    for name, course in played.items():
        for _, record in course["records"]:
            yield name, record


def _by_start(course: Played) -> list[Any]:
    return sorted(
        (record for _, record in course["records"]), key=lambda each: each["started_at_ns"]
    )


def _codes(played: Mapping[str, Played]) -> Iterator[str]:
    for course in played.values():
        for parts in course["clients"].values():
            for _, part in parts:
                yield from re.findall(r'"code":"(\w+)"', part)
