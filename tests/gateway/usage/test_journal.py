"""The journal of a gateway: what it holds, when it shrinks, and what is read after a kill."""

from pathlib import Path

import msgspec

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.usage.journal import UsageJournal, abandoned_journals
from tests.gateway.store.builders import a_record


def a_begun(name: str, output_tokens: int = 0) -> UsageRecord:
    """Return the record of a request that runs."""
    reason = RequestReason.GATEWAY_KILLED
    return a_record(record_id=name, reason=reason, output_tokens=output_tokens)


def kill(journal: UsageJournal) -> None:
    """Drop the locks, as the end of a process does."""
    for segment in (*journal._segments, *journal._ended_sums, *filter(None, (journal._sums,))):
        segment.file.close()
    journal._file.close()


def ids(records: tuple[UsageRecord, ...]) -> list[str]:
    return [record.record_id for record in records]


def test_a_living_process_is_left_alone_and_a_dead_one_leaves_what_was_not_stored(
    tmp_path: Path,
) -> None:
    journal = UsageJournal(tmp_path)
    for begun in (a_begun("a"), a_begun("b"), a_begun("c")):
        journal.add([begun], 0)
    journal.note_running([a_begun("a"), a_begun("b", output_tokens=7)], 1)
    journal.add([a_record(record_id="a")], 1)
    assert abandoned_journals(tmp_path) == []
    kill(journal)
    (left,) = abandoned_journals(tmp_path)
    ended, *running = left.records
    assert (ids(left.records), left.unfinished) == (["a", "b", "c"], 2)
    assert ended.reason != RequestReason.GATEWAY_KILLED
    assert [record.output_tokens for record in running] == [7, 0]
    left.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_was_cut_is_left_out(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path)
    for number, name in enumerate(("a", "b"), 1):
        journal.add([a_record(record_id=name)], number)
    kill(journal)
    (path,) = tmp_path.glob("*.ended")
    path.write_bytes(path.read_bytes()[:-3])
    (left,) = abandoned_journals(tmp_path)
    assert ids(left.records) == ["a"]


def test_what_is_stored_goes_though_there_is_always_more(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path, segment_bytes=1000)
    for number in range(1, 301):
        journal.add([a_record(record_id=str(number))], number)
        journal.note_running([], max(1, number - 8))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8000
    kill(journal)
    (left,) = abandoned_journals(tmp_path)
    assert set(ids(left.records)) >= {str(number) for number in range(292, 301)}


def test_a_gateway_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path)
    journal.add([a_record(record_id="a")], 1)
    journal.note_running([a_begun("b")], 1)
    journal.note_running([], None)
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_of_a_sum_the_newest_counts_wherever_it_is(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path, segment_bytes=1000)
    for requests in range(1, 40):
        ended = a_record(record_id=f"record-{requests}", requests=0)
        journal.add([ended, a_record(record_id="record-1", requests=requests)], 1)
        if requests == 20:
            journal.note_sums([a_record(record_id="record-1", requests=20)])
            journal.note_running([], None)
    journal.note_sums([a_record(record_id="record-x", requests=7)])
    kill(journal)
    (left,) = abandoned_journals(tmp_path)
    assert {each.record_id: each.requests for each in left.records} == {
        "record-1": 39,
        "record-x": 7,
    }


def test_sums_stay_until_those_of_their_period_are_stored(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path)
    journal.note_sums([a_record(record_id="a", requests=5)])
    journal.end_sums()
    journal.note_sums([a_record(record_id="b", requests=6)])
    journal.note_running([], None)
    journal.drop_ended_sums()
    kill(journal)
    (left,) = abandoned_journals(tmp_path)
    assert ids(left.records) == ["b"]


def test_gateways_of_the_version_before_and_this_one_read_the_journals_of_each_other(
    tmp_path: Path,
) -> None:
    # That one knows the path of a request as `route`, and no field without which it reads.
    journal = UsageJournal(tmp_path)
    journal.add([a_record(path="/score")], 1)
    kill(journal)
    (path,) = tmp_path.glob("*.ended")
    frame = path.read_bytes()
    fields = msgspec.msgpack.decode(frame[4:])
    assert (fields["route"], "path" in fields) == ("/score", False)

    fields.pop("requests")
    older = msgspec.msgpack.encode({**fields, "record_id": "older", "dropped": 1})
    path.write_bytes(frame + len(older).to_bytes(4) + older)
    (left,) = abandoned_journals(tmp_path)
    assert [record.path for record in left.records] == ["/score", "/score"]
    assert left.records[1] == a_record(record_id="older", path="/score")


def test_calls_that_did_not_answer_are_kept_and_what_a_sum_counts_is_not(tmp_path: Path) -> None:
    call = {"requests": 0, "model_route": "team-a/assistant", "target": "small"}
    journal = UsageJournal(tmp_path, segment_bytes=1)
    journal.add([a_record(record_id="call", **call)], 1)
    # One segment each, whose names are in another order than their numbers from 10 on.
    for number in range(1, 12):
        summed = a_record(record_id=f"sum-{number}", total_ns=1, **call)
        total = a_record(record_id="sum-1", output_tokens=number, total_ns=number, **call)
        journal.add_summed(summed, total, 1)
    kill(journal)
    (left,) = abandoned_journals(tmp_path)
    assert {each.record_id: each.output_tokens for each in left.records} == {
        "call": 20,
        "sum-1": 11,
    }
