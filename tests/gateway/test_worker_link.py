"""A worker whose supervisor is replaced while it borrows."""

from pathlib import Path

import msgspec
import pytest

from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.account import PortionRequest
from tessera.domain.limits.scopes import Meter
from tessera.domain.limits.worker_limits import Admitted, BorrowRequest
from tessera.gateway import worker_link
from tessera.gateway.admission import DemandCount, Ticket
from tessera.gateway.frames import Borrow, Portions, ToSupervisor
from tessera.gateway.worker_link import SupervisedWorker
from tests.domain.limits.accounts import a_limit
from tests.gateway.harness import a_model


@pytest.mark.parametrize(("lost", "answered"), [(0, True), (2, True), (100, False)])
async def test_what_a_dead_supervisor_did_not_answer_is_asked_again(
    lost: int, answered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "_ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(worker_link, "_BORROW_SECONDS", 60 if answered else 0.2)
    worker, sent = SupervisedWorker(tmp_path / "socket"), list[Borrow]()

    def send(frame: ToSupervisor) -> None:
        assert isinstance(frame, Borrow)
        sent.append(msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Borrow))
        if len(sent) > lost:
            worker._handle(Portions(frame.number, (), ()))

    monkeypatch.setattr(worker._link, "send", send)
    portion = PortionRequest(limit=a_limit(Meter.REQUESTS, 60), need=1, returned=3)
    assert await worker.borrow(BorrowRequest(portions=(portion,))) is answered
    returned = [frame.portions[0].returned for frame in sent]
    # What was not used is given back once.
    assert (returned[0], set(returned[1:])) == (3, {0} if lost else set())
    if answered:
        assert len(sent) == lost + 1


def test_the_demand_of_a_service_never_falls_below_zero(tmp_path: Path) -> None:
    admission, model = SupervisedWorker(tmp_path / "socket").admission, a_model()
    demand = admission.demand[model.service] = DemandCount()

    def a_ticket(work: float, demand: DemandCount) -> Ticket:
        ticket = Ticket(
            tenant="team-a",
            model=model,
            shape=RequestShape(model="chat", input_tokens=1, max_output_tokens=1),
            admitted=Admitted(
                limits=(), input_tokens=1, max_output_tokens=1, requests=None, tokens=None
            ),
            work_seconds=work,
            demand=demand,
        )
        demand.in_flight += 1
        demand.work_ns += ticket.work_ns
        demand.tenants[ticket.tenant] += 1
        return ticket

    tickets = [a_ticket(work, demand) for work in (0.1, 0.2, 0.3, 0.7)]
    # The last one is of a service of this name that was deleted.
    for ticket in (*(tickets[i] for i in (0, 2, 3, 1)), a_ticket(0.5, DemandCount())):
        admission.finish(ticket, input_tokens=1, output_tokens=1)
        assert demand.in_flight >= 0
        assert demand.work_ns >= 0
    assert (demand.in_flight, demand.work_ns) == (0, 0)
