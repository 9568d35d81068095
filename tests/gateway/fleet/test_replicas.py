"""Replicas as a gateway sees them."""

from datetime import UTC, datetime

from tessera.domain.gateway.directory import model_changes
from tessera.gateway.fleet.replicas import Replicas
from tests.gateway.harness import a_model, a_replica
from tests.gateway_builders import a_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def test_one_absurd_count_leaves_room_for_those_that_follow() -> None:
    model = a_model(a_replica("127.0.0.1:1", max_num_seqs=64, max_num_batched_tokens=8192))
    replicas = Replicas()
    replicas.update(model_changes((), (model,)), 0.0, NOW)
    replicas.learn(model, 10**9, 10**9)
    work = replicas.work_seconds(model, a_request())
    for _ in range(32):
        states = replicas.with_room(model, 1.0)
        assert states
        assert replicas.send(model, a_request(), 1.0, states)
    assert not replicas.with_room(model, 1.0)
    untouched = Replicas()
    untouched.update(model_changes((), (model,)), 0.0, NOW)
    assert work == untouched.work_seconds(model, a_request())
