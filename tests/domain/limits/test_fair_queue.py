"""The order of waiting requests, their bounds, and what a refusal says."""

from collections import Counter
from dataclasses import replace
from itertools import cycle, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.service_class import ServiceClass
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority
from tessera.domain.limits.fair_queue import (
    UNKNOWN_RETRY_SECONDS,
    FairQueue,
    QueueBounds,
    QueueEntry,
    QueueRefusal,
    QueueService,
)
from tests.gateway_simulation import ClosedLoop


def an_entry(tenant: str = "team-a", work_seconds: float = 1.0, **fields: Any) -> QueueEntry:
    return QueueEntry(tenant=tenant, work_seconds=work_seconds, **fields)


def a_queue(*entries: QueueEntry, **bounds: int) -> FairQueue:
    queue = FairQueue(QueueBounds(**bounds))
    for entry in entries:
        assert queue.offer(entry, 0.0, replicas=0) is None
    return queue


SERVICE = QueueService(now=0.0, replicas=1)


def order(queue: FairQueue, service: QueueService = SERVICE) -> list[QueueEntry]:
    return list(iter(lambda: queue.pop(service), None))


def test_requests_of_one_tenant_keep_their_order() -> None:
    entries = [an_entry(work_seconds=seconds) for seconds in (5, 1, 3)]
    assert order(a_queue(*entries)) == entries


def test_tenants_take_turns_by_work_and_not_by_requests() -> None:
    greedy = [an_entry("greedy", 1) for _ in range(20)]
    modest = [an_entry("modest", 4) for _ in range(3)]
    tenants = "".join(entry.tenant[0] for entry in order(a_queue(*greedy, *modest)))
    assert tenants.startswith("gmgggmggggm")


def test_a_tenant_of_twice_the_weight_gets_twice_the_work() -> None:
    entries = [
        an_entry(tenant, 1, weight=w) for tenant, w in (("a", 1), ("b", 2)) for _ in range(99)
    ]
    first = Counter(entry.tenant for entry in order(a_queue(*entries))[:90])
    assert first["b"] == pytest.approx(60, abs=1)


def test_a_tenant_that_comes_back_has_no_credit_from_its_absence() -> None:
    queue = a_queue(*[an_entry("busy") for _ in range(50)])
    for _ in range(30):
        queue.pop(SERVICE)
    for _ in range(10):
        queue.offer(an_entry("back"), 0.0, replicas=0)
    assert Counter(entry.tenant for entry in order(queue)[:10])["back"] == 5


weights = {"a": 1.0, "b": 2.0, "c": 0.5}
arrivals = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9.0)), min_size=1)


@given(arrivals)
def test_work_of_two_waiting_tenants_differs_by_one_request_of_each(
    requests: list[tuple[str, float]],
) -> None:
    entries = [an_entry(tenant, work, weight=weights[tenant]) for tenant, work in requests]
    largest = {
        tenant: max((work for name, work in requests if name == tenant), default=0.0) / weight
        for tenant, weight in weights.items()
    }
    queue = a_queue(*entries)
    remaining = Counter(entry.tenant for entry in entries)
    served = dict.fromkeys(weights, 0.0)
    while all(remaining[tenant] for tenant in "ab"):
        entry = queue.pop(SERVICE)
        assert entry is not None
        remaining[entry.tenant] -= 1
        served[entry.tenant] += entry.work_seconds / entry.weight
        assert abs(served["a"] - served["b"]) <= largest["a"] + largest["b"] + 1e-9


@given(arrivals, st.data())
def test_every_request_leaves_the_queue_exactly_once(
    requests: list[tuple[str, float]], data: st.DataObject
) -> None:
    entries = [an_entry(tenant, work) for tenant, work in requests]
    queue = a_queue(*entries)
    cancelled = data.draw(st.lists(st.sampled_from(entries), unique_by=id))
    assert all(queue.cancel(entry) for entry in cancelled)
    assert not any(queue.cancel(entry) for entry in cancelled)
    assert len(queue) == len(entries) - len(cancelled)
    served = order(queue)
    assert sorted(map(id, [*served, *cancelled])) == sorted(map(id, entries))
    assert (len(queue), queue.work_seconds) == (0, 0)


def test_a_cancelled_request_is_not_charged() -> None:
    cancelled = [an_entry("a", 100) for _ in range(5)]
    queue = a_queue(*cancelled, an_entry("a", 1), an_entry("b", 1), an_entry("b", 1))
    for entry in cancelled:
        queue.cancel(entry)
    assert [entry.tenant for entry in order(queue)] == ["a", "b", "b"]


def classes(queue: FairQueue, count: int) -> list[ServiceClass]:
    entries = [queue.pop(SERVICE) for _ in range(count)]
    return [entry.service_class for entry in entries if entry is not None]


def test_higher_classes_go_first() -> None:
    queue = a_queue(
        an_entry(service_class="Batch"),
        an_entry(service_class="Standard"),
        an_entry(service_class="Interactive"),
    )
    assert classes(queue, 3) == ["Interactive", "Standard", "Batch"]


def test_lower_classes_starve_no_longer_than_17_requests() -> None:
    of_class: tuple[ServiceClass, ...] = ("Interactive", "Standard", "Batch")
    entries = [
        an_entry(f"team-{each}", service_class=each) for each in of_class for _ in range(200)
    ]
    queue = a_queue(*entries)
    served = classes(queue, 180)
    for lower in ("Standard", "Batch"):
        places = [index for index, each in enumerate(served) if each == lower]
        gaps = [after - before for before, after in pairwise(places)]
        assert max(gaps) <= 18
        assert places[0] <= 17
    assert served.count("Interactive") >= 0.88 * 180


def test_a_class_that_waits_again_has_no_passes_from_before() -> None:
    batch = an_entry(service_class="Batch")
    queue = a_queue(*[an_entry() for _ in range(60)], batch)
    classes(queue, 16)
    queue.cancel(batch)
    queue.pop(SERVICE)
    queue.offer(an_entry(service_class="Batch"), 0.0, replicas=0)
    assert classes(queue, 16) == ["Interactive"] * 16


@pytest.mark.parametrize(
    ("bounds", "reason", "retry_after"),
    [
        ({"requests": 4}, RequestReason.QUEUE_FULL, 1.0),
        ({"requests_per_tenant": 3}, RequestReason.TENANT_QUEUE_FULL, 4 / 3),
    ],
)
def test_a_full_queue_says_when_the_next_place_is_free(
    bounds: dict[str, int], reason: RequestReason, retry_after: float
) -> None:
    queue = a_queue(*[an_entry("a", 2) for _ in range(3)], an_entry("b", 2), **bounds)
    refusal = queue.offer(an_entry("a", 2), 0.0, replicas=2)
    assert refusal is not None
    assert refusal.reason is reason
    assert refusal.retry_after_seconds == pytest.approx(retry_after)
    asleep = queue.offer(an_entry("a"), 0.0, replicas=0)
    assert asleep is not None
    assert asleep.retry_after_seconds == UNKNOWN_RETRY_SECONDS
    assert len(queue) == 4


def test_a_full_queue_makes_room_by_the_newest_of_the_tenant_with_most_by_weight() -> None:
    displaced: list[tuple[QueueEntry, QueueRefusal]] = []
    queue = FairQueue(QueueBounds(requests=9), lambda *args: displaced.append(args))
    heavy = [an_entry("heavy", weight=4) for _ in range(5)]
    most = [an_entry("most", 2, service_class=each) for each in ("Interactive", "Batch")]
    most += [an_entry("most", 2), an_entry("most", 2)]
    for entry in (*heavy, *most):
        assert queue.offer(entry, 0.0, replicas=1) is None
    # Its batch goes first, then the newest of the others.
    for newest in (most[1], most[3]):
        assert queue.offer(an_entry("few"), 0.0, replicas=1) is None
        assert displaced[-1][0] is newest
        assert len(queue) == 9
    refusal = displaced[0][1]
    assert (refusal.reason, refusal.retry_after_seconds) == (RequestReason.QUEUE_FULL, 13 / 9)
    # Who has as many as anybody is refused himself.
    late = queue.offer(an_entry("few"), 0.0, replicas=1)
    assert late is not None
    assert late.reason is RequestReason.QUEUE_FULL
    assert len(displaced) == 2


def test_a_request_that_would_be_late_is_refused_at_once() -> None:
    queue = a_queue(*[an_entry("a", 1) for _ in range(8)])
    refusal = queue.offer(an_entry("a", deadline=103.0), 100.0, replicas=2)
    assert refusal is not None
    assert refusal.reason is RequestReason.DEADLINE_UNREACHABLE
    assert refusal.retry_after_seconds == 1.0
    assert queue.offer(an_entry("a", deadline=104.0), 100.0, replicas=2) is None
    # Others do not wait for the work of this tenant, and while a service wakes nobody knows.
    assert queue.offer(an_entry("b", deadline=100.5), 100.0, replicas=2) is None
    assert queue.offer(an_entry("a", deadline=100.1), 100.0, replicas=0) is None


@given(arrivals, st.sampled_from("abc"), st.sampled_from(["Interactive", "Standard"]))
def test_the_predicted_wait_is_the_work_that_goes_before(
    requests: list[tuple[str, float]], tenant: str, service_class: ServiceClass
) -> None:
    queue = a_queue(*[an_entry(name, work, weight=weights[name]) for name, work in requests])
    for _ in range(len(requests) // 2):
        queue.pop(SERVICE)
    entry = an_entry(
        tenant, 1.0, weight=weights[tenant], service_class=service_class, deadline=-1.0
    )
    refusal = queue.offer(entry, 0.0, replicas=1)
    assert refusal is not None
    assert queue.offer(entry, 0.0, replicas=0) is None
    served = order(queue)
    before = sum(each.work_seconds for each in served[: served.index(entry)])
    largest = sum(
        max((work for name, work in requests if name == each), default=0.0) for each in "abc"
    )
    if len(requests) <= 16 or service_class == "Interactive":
        predicted = refusal.retry_after_seconds + entry.deadline
        assert predicted == pytest.approx(before, abs=largest)


def at(now: float, *, replicas: int = 1) -> QueueService:
    """Return a service whose requests get their first token half a second later."""
    return QueueService(now=now, replicas=replicas, is_late=lambda entry: now + 0.5 > entry.due)


def test_what_can_be_in_time_goes_before_what_cannot() -> None:
    late = [an_entry(due=1.0), an_entry(due=1.2)]
    timely = [an_entry(due=2.0), an_entry(due=2.1)]
    assert order(a_queue(*late, *timely), at(1.0)) == [*timely, *late]


def test_late_requests_of_one_tenant_take_nothing_from_another() -> None:
    late = [an_entry("late", due=1.0) for _ in range(10)]
    timely = [an_entry("timely", due=9.0) for _ in range(10)]
    tenants = [entry.tenant for entry in order(a_queue(*late, *timely), at(1.0))]
    assert tenants[:10].count("late") == 5


def test_a_late_request_goes_first_once_all_of_them_need_half_of_the_time_left() -> None:
    late = [an_entry(work_seconds=2, due=1.0, deadline=60.0) for _ in range(5)]
    queue = a_queue(*late)
    assert queue.pop(at(1.0)) is late[0]
    timely = [an_entry(due=99.0) for _ in range(2)]
    for entry in timely:
        queue.offer(entry, 1.0, replicas=1)
    assert queue.pop(at(43.9)) is timely[0]
    assert queue.pop(at(44.0, replicas=2)) is timely[1]
    queue.offer(timely[1], 44.0, replicas=1)
    assert queue.pop(at(44.0)) is late[1]


def test_of_two_tenants_each_has_half_of_the_time_for_its_late_requests() -> None:
    late = [an_entry("a", work_seconds=2, due=1.0, deadline=60.0) for _ in range(5)]
    timely = an_entry("a", due=99.0)
    others = [an_entry("b", work_seconds=4, due=99.0) for _ in range(2)]
    queue = a_queue(*late, *others)
    assert [queue.pop(at(1.0)) for _ in range(2)] == [late[0], others[0]]
    queue.offer(timely, 1.0, replicas=1)
    # 8 s of work at half of a replica are half of the 32 s that are left.
    assert queue.pop(at(28.0)) is late[1]


def test_a_late_request_can_be_cancelled_and_expires() -> None:
    entries = [an_entry(due=1.0, deadline=5.0) for _ in range(4)]
    queue = a_queue(*entries)
    assert queue.pop(at(1.0)) is entries[0]
    assert queue.cancel(entries[2])
    assert not queue.cancel(entries[2])
    assert queue.expire(5.5) == [entries[1], entries[3]]
    assert (len(queue), queue.work_seconds) == (0, 0)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 3.0), st.floats(0, 9)), min_size=1),
    st.lists(st.floats(0, 2), min_size=1),
)
def test_whatever_is_late_every_request_is_served_once(
    requests: list[tuple[str, float, float]], pauses: list[float]
) -> None:
    entries = [an_entry(tenant, work, due=due) for tenant, work, due in requests]
    queue, now, served = a_queue(*entries), 0.0, []
    for pause, _ in zip(cycle(pauses), entries, strict=False):
        now += pause
        served.append(queue.pop(at(now)))
    assert sorted(map(id, served)) == sorted(map(id, entries))
    assert (len(queue), queue.work_seconds) == (0, 0)


def test_what_has_no_place_lets_all_others_pass_and_goes_first_once_it_has() -> None:
    # The one of `a` was first, whose other request is served before.
    long = [an_entry("b"), an_entry("a"), an_entry("a", service_class="Standard")]
    short = [an_entry("a"), an_entry("b", service_class="Standard")]
    for is_late in (lambda _: False, lambda _: True):
        queue = a_queue(long[1], short[0], long[0], long[2], short[1])
        service = replace(SERVICE, is_late=is_late, has_place=lambda entry: entry in short)
        assert order(queue, service) == short
        assert len(queue) == 3
        assert order(queue) == long
        assert not len(queue)


def test_a_tenant_whose_request_had_no_place_has_no_credit_for_that_time() -> None:
    long, others = an_entry("long"), [an_entry("other") for _ in range(30)]
    queue = a_queue(long, *others)
    service = replace(SERVICE, has_place=lambda entry: entry is not long)
    assert [queue.pop(service) for _ in range(10)] == others[:10]
    for _ in range(9):
        queue.offer(an_entry("long"), 0.0, replicas=0)
    first = [queue.pop(SERVICE) for _ in range(11)]
    assert first[0] is long
    assert Counter(entry.tenant for entry in first if entry)["long"] == 6


@given(arrivals, st.data())
def test_whatever_has_no_place_every_request_is_served_once(
    requests: list[tuple[str, float]], data: st.DataObject
) -> None:
    entries = [an_entry(tenant, work) for tenant, work in requests]
    queue = a_queue(*entries)
    placeless = data.draw(st.lists(st.sampled_from(entries), unique_by=id))
    service = replace(SERVICE, has_place=lambda entry: entry not in placeless)
    served, rest = order(queue, service), order(queue)
    assert sorted(map(id, rest)) == sorted(map(id, placeless))
    assert sorted(map(id, [*served, *rest])) == sorted(map(id, entries))
    assert (len(queue), queue.work_seconds) == (0, 0)


def test_expired_requests_are_removed() -> None:
    late, early = an_entry(deadline=5.0), an_entry(deadline=6.0)
    queue = a_queue(late, early)
    assert queue.expire(5.0) == []
    assert queue.expire(5.5) == [late]
    assert order(queue) == [early]


def p95_ttft(greedy_clients: int, *, engines: int, output_tokens: int) -> float:
    """Let 30 clients per engine of a modest tenant and some of a greedy one be busy for 60 s."""
    loop = ClosedLoop(
        clients={"modest": 30 * engines, "greedy": greedy_clients}, output_tokens=output_tokens
    )
    for index in range(engines):
        loop.add_engine(f"chat-{index}")
    loop.run(until=60.0)
    ttft = sorted(loop.ttft["modest"])
    return ttft[int(0.95 * len(ttft))]


@pytest.mark.parametrize(("engines", "output_tokens"), [(1, 50), (1, 200), (3, 100)])
def test_a_greedy_tenant_makes_the_other_wait_no_longer_than_its_share_does(
    engines: int, output_tokens: int
) -> None:
    shares = [
        p95_ttft(clients * engines, engines=engines, output_tokens=output_tokens)
        for clients in (30, 300)
    ]
    assert shares[1] == pytest.approx(shares[0], rel=0.1)


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.95 * len(seconds))]


def beside_a_flood(clients: int, think_seconds: float, *, yields: bool) -> ClosedLoop:
    """Let people use three engines for 30 s, with 600 others if these yield, or without."""
    loop = ClosedLoop(
        clients={"people": clients, "flood": 600 if yields else 0},
        output_tokens=100,
        think_seconds=think_seconds,
        yielding=frozenset({"flood"}),
    )
    for index in range(3):
        loop.add_engine(f"chat-{index}")
    loop.run(until=30.0)
    return loop


# A third of what the engines carry, two thirds, and more than all.
@pytest.mark.parametrize(
    ("clients", "think_seconds", "served"), [(30, 1.0, 1000), (60, 1.0, 800), (180, 0.001, 1)]
)
def test_a_flood_of_requests_that_yield_makes_others_wait_no_longer(
    clients: int, think_seconds: float, served: int
) -> None:
    alone = beside_a_flood(clients, think_seconds, yields=False)
    beside = beside_a_flood(clients, think_seconds, yields=True)
    assert p95(beside.queued["people"]) <= p95(alone.queued["people"])
    # A prompt more is read in 10 ms.
    assert p95(beside.ttft["people"]) <= p95(alone.ttft["people"]) + 0.01
    assert len(beside.ttft["flood"]) >= served


SHEDDABLE, BATCH = RequestPriority.SHEDDABLE, RequestPriority.BATCH


@given(arrivals, arrivals, st.sampled_from([SHEDDABLE, BATCH]), st.sampled_from([2, 5, 1000]))
def test_what_yields_changes_nothing_for_what_does_not(
    requests: list[tuple[str, float]],
    yielding: list[tuple[str, float]],
    priority: RequestPriority,
    places: int,
) -> None:
    def offered(*, beside: bool) -> list[tuple[QueueRefusal | None, QueueEntry]]:
        queue = FairQueue(QueueBounds(requests=places, requests_per_tenant=places - 1))
        answers = []
        for index, entry in enumerate(entries):
            if beside:
                for tenant, work in yielding[index :: len(entries)]:
                    other = an_entry(tenant, work, weight=weights[tenant], priority=priority)
                    queue.offer(other, 0.0, replicas=1)
            answers.append((queue.offer(entry, 0.0, replicas=1), entry))
        served.append([entry for entry in order(queue) if not entry.priority.yields])
        return answers

    entries = [
        an_entry(tenant, work, weight=weights[tenant], deadline=20.0) for tenant, work in requests
    ]
    served: list[list[QueueEntry]] = []
    with_others, alone = offered(beside=True), offered(beside=False)
    assert with_others == alone
    assert served[0] == served[1]


def test_what_yields_is_served_last_in_turn_by_tenants() -> None:
    batch = [an_entry("b", priority=BATCH) for _ in range(2)]
    shed = [an_entry("s", priority=SHEDDABLE, service_class="Batch") for _ in range(2)]
    ordinary = [an_entry("b", service_class="Batch") for _ in range(20)]
    served = order(a_queue(*batch, *shed, *ordinary))
    assert served == [*ordinary, batch[0], shed[0], batch[1], shed[1]]


def test_what_yields_leaves_a_full_queue_first_whosever_it_is() -> None:
    displaced: list[tuple[QueueEntry, QueueRefusal]] = []
    queue = FairQueue(
        QueueBounds(requests=6, requests_per_tenant=4), lambda *args: displaced.append(args)
    )
    shed = [an_entry("few", priority=SHEDDABLE), an_entry("few", priority=SHEDDABLE)]
    batch = an_entry("most", priority=BATCH)
    ordinary = [an_entry("most") for _ in range(3)]
    for entry in (*shed, batch, *ordinary):
        assert queue.offer(entry, 0.0, replicas=1) is None
    # The tenant has its four places, and gives one of them up.
    assert queue.offer(an_entry("most"), 0.0, replicas=1) is None
    assert queue.offer(an_entry("other"), 0.0, replicas=1) is None
    assert [(entry, refusal.reason) for entry, refusal in displaced] == [
        (batch, RequestReason.TENANT_QUEUE_FULL),
        (shed[1], RequestReason.SHED),
    ]
    assert displaced[1][1].retry_after_seconds == 1.0
    # Whoever has most waiting: what yields takes the place of nothing else.
    for priority, reason in ((SHEDDABLE, RequestReason.SHED), (BATCH, RequestReason.QUEUE_FULL)):
        refusal = queue.offer(an_entry("new", priority=priority), 0.0, replicas=1)
        assert refusal is None or refusal.reason is reason
    assert len(displaced) == 2


def test_a_sheddable_request_that_would_be_late_is_shed() -> None:
    queue = a_queue(*[an_entry("a", 1) for _ in range(8)])
    refusal = queue.offer(an_entry("b", priority=SHEDDABLE, deadline=103.0), 100.0, replicas=2)
    assert refusal == QueueRefusal(RequestReason.SHED, 1.0)
    assert queue.offer(an_entry("b", priority=SHEDDABLE, deadline=104.0), 100.0, replicas=2) is None
