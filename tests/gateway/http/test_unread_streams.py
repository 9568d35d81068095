"""A client that does not read its stream keeps no place from others for long."""

from collections.abc import Mapping
from typing import Any

import pytest

from tessera.domain.gateway.directory import TenantLimits
from tests.gateway.course.building import (
    CHAT_PATH,
    FIRST,
    a_course,
    answering,
    directory,
    engine,
    request,
    sent,
    streamed,
    streaming,
)
from tests.gateway.course.paths import BODIES
from tests.gateway.course.play import Play, Script, Step
from tests.gateway.harness import DONE, END, ROLE, TENANT, USAGE, a_delta, an_api_key

OTHER = "team-b"
HOGS = 2
# A replica of one sequence has no room beside two requests.
MODEL: Any = {"public": True, "replica": {"max_num_seqs": 1}}
STREAM = streaming([ROLE, *[a_delta("x" * 100_000)] * 30, END, USAGE, DONE])
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"
READS_NOTHING: Script = (Step(0.0, "stop reading"),)


def played(*reading: Step, seconds: float | None, **headers: str) -> tuple[Mapping[str, Any], ...]:
    """Return the records of clients that read so, and of one of another tenant behind them."""
    asked = request(CHAT_PATH, streamed(CHAT_PATH), x_request_id="hog")
    hogs = [sent(asked, *reading, seconds=0.01 * number) for number in range(1, HOGS + 1)]
    others = []
    if seconds is not None:
        headers |= {"key": "tsk-team-b", "x_request_id": "other"}
        other = request(CHAT_PATH, BODIES[CHAT_PATH], **headers)
        # A connection that says nothing does not stay.
        others = [sent(HEALTH, Step(seconds - 0.5, "send", other), seconds=0.5)]
    known = directory(
        FIRST,
        keys=(an_api_key(), an_api_key("tsk-team-b", tenant=OTHER)),
        tenants={name: TenantLimits(name=name, namespaces=(name,)) for name in (TENANT, OTHER)},
        **MODEL,
    )
    answers = [*[STREAM] * HOGS, answering(CHAT_PATH, stream=False)]
    course = a_course("unread", *hogs, *others, engines={FIRST: engine(*answers)}, directory=known)
    played = Play(course).run()
    assert played["engines"][FIRST]
    return tuple(record for _, record in played["records"])


@pytest.mark.parametrize("seconds", [1.0, 17.0])
def test_who_leaves_a_stream_unread_is_cut_while_others_wait(seconds: float) -> None:
    records = played(*READS_NOTHING, seconds=seconds)
    (other,) = (each for each in records if each["request_id"] == "other")
    assert (other["status"], other["phase"]) == (200, "Completed")
    assert other["queue_ns"] <= 10.5e9
    hogs = [each for each in records if each["request_id"] == "hog"]
    assert [each["reason"] for each in hogs] == ["ClientGone"] * HOGS
    # They pay what came, and what was made behind it.
    assert all(each["input_tokens"] and each["output_tokens"] for each in hogs)


def test_who_keeps_no_one_waiting_has_his_minute() -> None:
    records = played(*READS_NOTHING, seconds=None)
    assert [each["reason"] for each in records] == ["ClientGone"] * HOGS
    assert all(60e9 < each["total_ns"] < 62e9 for each in records)


@pytest.mark.parametrize("seconds", [1.0, 9.0])
def test_who_reads_a_little_at_a_time_keeps_no_place(seconds: float) -> None:
    reads = [Step(seconds, "read", size=10_000 * round(seconds))] * round(60 / seconds)
    records = played(*READS_NOTHING, *reads, Step(0.1, "read on"), seconds=1.0)
    (other,) = (each for each in records if each["request_id"] == "other")
    assert (other["status"], other["phase"]) == (200, "Completed")
    assert other["queue_ns"] <= 20e9


def test_who_yields_to_others_is_no_reason_to_cut_them() -> None:
    reads = [Step(0.1, "await"), Step(20.0, "read on")]
    records = played(*READS_NOTHING, *reads, seconds=9.0, x_tessera_sheddable="true")
    (other,) = (each for each in records if each["request_id"] == "other")
    assert other["reason"] == "Shed"
    hogs = [each for each in records if each["request_id"] == "hog"]
    assert [each["phase"] for each in hogs] == ["Completed"] * HOGS


@pytest.mark.parametrize("size", [40_000, 120_000])
def test_who_reads_slowly_is_not_cut(size: int) -> None:
    reads = [Step(1.0, "read", size=size)] * 40
    records = played(*READS_NOTHING, *reads, Step(0.1, "read on"), seconds=1.0)
    assert {each["phase"] for each in records} == {"Completed"}
    (other,) = (each for each in records if each["request_id"] == "other")
    assert other["queue_ns"] > 15e9
