"""Replicas as one worker of several sees them."""

from datetime import UTC, datetime

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, OfferedModel
from tessera.domain.limits.worker_shares import WorkerShare
from tessera.domain.picking.replica_state import SentLoad
from tessera.gateway.replicas import Replicas
from tests.gateway.harness import a_model, a_replica
from tests.gateway_builders import a_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)
CHAT = Ref("team-a", "chat")
OTHERS = {"uid-chat-1": SentLoad(requests=2, awaiting=0, prefill_tokens=0)}


def some_replicas(**shares: float) -> tuple[Replicas, OfferedModel]:
    model = a_model(a_replica("127.0.0.1:1", max_num_seqs=9))
    replicas = Replicas()
    replicas.update(Directory(models=(model,)), 0.0, NOW)
    own = {
        Ref("team-a", name): WorkerShare(places=share, tenants={"team-a": 0.25})
        for name, share in shares.items()
    }
    replicas.shared(OTHERS, own, 0.0)
    return replicas, model


def sent(replicas: Replicas, model: OfferedModel, now: float = 1.0) -> int:
    """Send requests as long as there is room; return how many."""
    count = 0
    while states := replicas.with_room(model, now):
        assert replicas.send(model, a_request(input_tokens=1), now, states) is not None
        count += 1
    return count


def test_a_worker_takes_all_room_while_nothing_of_others_waits() -> None:
    assert sent(*some_replicas()) == 8


def test_a_worker_leaves_the_rest_to_others_that_wait_for_their_share() -> None:
    assert sent(*some_replicas(chat=0.5)) == 5


def test_what_others_were_last_reported_to_run_does_not_take_of_a_workers_share() -> None:
    replicas, model = some_replicas(chat=0.5)
    share = WorkerShare(places=0.5, tenants={"team-a": 0.25})
    replicas.shared({"uid-chat-1": SentLoad(requests=9)}, {CHAT: share}, 1.0)
    assert sent(replicas, model) == 5


def test_the_share_of_a_worker_is_one_of_prompts_where_these_are_longer_than_two_steps() -> None:
    model = a_model(
        *(a_replica(f"127.0.0.1:{port}", max_num_batched_tokens=64) for port in range(1, 5))
    )
    replicas = Replicas()
    replicas.update(Directory(models=(model,)), 0.0, NOW)
    replicas.shared({}, {CHAT: WorkerShare(places=0.5, tenants={})}, 0.0)
    count = 0
    while states := replicas.with_room(model, 1.0):
        assert replicas.send(model, a_request(input_tokens=512), 1.0, states)
        count += 1
    assert count == 4


def test_a_worker_without_a_request_may_always_send_one() -> None:
    assert sent(*some_replicas(chat=0.01)) == 1


def test_a_worker_counts_its_share_of_the_replicas() -> None:
    replicas, model = some_replicas(chat=0.25)
    assert (replicas.own_count(model, 1.0), replicas.own_count(model, 5.0)) == (0.25, 1.0)


def test_a_share_ends_where_no_supervisor_renews_it() -> None:
    replicas, model = some_replicas(chat=0.5)
    assert sent(replicas, model, now=5.0) == 8


def test_a_tenant_weighs_as_much_as_of_its_requests_is_here() -> None:
    replicas, model = some_replicas(chat=0.5)
    shares = [replicas.tenant_share(model, tenant, 1.0) for tenant in ("team-a", "team-b")]
    assert shares == [0.25, 1.0]
    assert replicas.tenant_share(model, "team-a", 5.0) == 1.0


def test_one_absurd_count_leaves_room_for_those_that_follow() -> None:
    model = a_model(a_replica("127.0.0.1:1", max_num_seqs=64, max_num_batched_tokens=8192))
    replicas = Replicas()
    replicas.update(Directory(models=(model,)), 0.0, NOW)
    replicas.learn(model, 10**9, 10**9)
    work = replicas.work_seconds(model, a_request())
    for _ in range(32):
        states = replicas.with_room(model, 1.0)
        assert states
        assert replicas.send(model, a_request(), 1.0, states)
    assert not replicas.with_room(model, 1.0)
    untouched = Replicas()
    untouched.update(Directory(models=(model,)), 0.0, NOW)
    assert work == untouched.work_seconds(model, a_request())
