"""A worker whose supervisor is replaced while it borrows."""

from pathlib import Path

import pytest

from tessera.domain.limits.worker_limits import BorrowRequest
from tessera.gateway import worker_link
from tessera.gateway.frames import Borrow, Portions, ToSupervisor
from tessera.gateway.worker_link import SupervisedWorker


@pytest.mark.parametrize(("lost", "answered"), [(0, True), (2, True), (100, False)])
async def test_what_a_dead_supervisor_did_not_answer_is_asked_again(
    lost: int, answered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "_ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(worker_link, "_BORROW_SECONDS", 60 if answered else 0.2)
    worker, sent = SupervisedWorker(tmp_path / "socket"), list[ToSupervisor]()

    def send(frame: ToSupervisor) -> None:
        sent.append(frame)
        if isinstance(frame, Borrow) and len(sent) > lost:
            worker._handle(Portions(frame.number, (), ()))

    monkeypatch.setattr(worker._link, "send", send)
    assert await worker.borrow(BorrowRequest(portions=(), slots=())) is answered
    if answered:
        assert len(sent) == lost + 1
