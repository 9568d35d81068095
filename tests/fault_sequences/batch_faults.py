"""What goes wrong while a batch runs: its input, its volume, its engine, its runner, its users."""

import errno
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.resources.api_resources import NODES
from tessera.resources.manifest import ObjectKey
from tests.fault_sequences.batch_fleet import NIGHT, BatchFleet, Row
from tests.fault_sequences.fake_engine import EngineMode
from tests.fault_sequences.language import Fault

_GONE = ("",)


def _everything(_fleet: BatchFleet) -> Sequence[str]:
    return ("the batch",)


def _unfinished(fleet: BatchFleet) -> Sequence[str]:
    """The batch, while it is there and is not finished."""
    exists = NIGHT in fleet.cluster.objects and fleet.deleted_at is None
    finished = fleet.state in ("completed", "failed", "expired")
    return (NIGHT.name,) if exists and not finished else ()


def _working(fleet: BatchFleet) -> Sequence[str]:
    """The pods whose runner is answering rows."""
    return [pod.uid for pod in fleet.working_pods()]


def _nodes_in_use(fleet: BatchFleet) -> Sequence[str]:
    return sorted({pod.node for pod in fleet.working_pods()})


def _change_input(
    fleet: BatchFleet, _target: str, *, change: Callable[[list[Row]], list[Row]], in_place: bool
) -> None:
    fleet.write_input(change(fleet.versions[-1]), in_place=in_place)


def _restore_input(fleet: BatchFleet, _target: str, *, in_place: bool) -> None:
    # The volume may refuse its own clients meanwhile.
    error, fleet.volume.error = fleet.volume.error, 0
    fleet.write_input(fleet.versions[0], in_place=in_place)
    fleet.volume.error = error


def _prepend(rows: list[Row]) -> list[Row]:
    return [("new-1", "echo new-1"), ("new-2", "echo new-2"), *rows]


def _append(rows: list[Row]) -> list[Row]:
    return [*rows, *((f"late-{number}", f"echo late-{number}") for number in range(20))]


def _cut(rows: list[Row]) -> list[Row]:
    return rows[: len(rows) // 2]


def _reword(rows: list[Row]) -> list[Row]:
    """Every prompt is another one of the same length."""
    return [(custom_id, prompt.replace("echo", "ECHO")) for custom_id, prompt in rows]


def _set_volume(fleet: BatchFleet, _target: str, *, error: int) -> None:
    fleet.volume.error = error


def _set_engine(fleet: BatchFleet, _target: str, *, mode: EngineMode) -> None:
    fleet.engine.mode = mode


def _kill_runner(fleet: BatchFleet, uid: str) -> None:
    runner = fleet.pods[uid].runner
    assert runner is not None
    runner.kill()


def _kill_engine(fleet: BatchFleet, uid: str) -> None:
    """The engine ends, and its kubelet starts it again at once."""
    pod = fleet.pods[uid]
    assert pod.engine is not None
    pod.engine.kill()
    fleet.start_engine(pod)


def _freeze_runner(fleet: BatchFleet, uid: str, *, frozen: bool) -> None:
    for pod in fleet.all_pods:
        if pod.uid == uid and pod.runner is not None:
            pod.runner.frozen = frozen


def _delete_pod(fleet: BatchFleet, uid: str) -> None:
    fleet.cluster.discard(fleet.pods[uid].key)


def _lose_node(fleet: BatchFleet, node: str, *, dead: bool) -> None:
    fleet.lose_node(node, dead=dead)


def _return_node(fleet: BatchFleet, node: str) -> None:
    fleet.return_node(node)


def _announce_loss(fleet: BatchFleet, node: str) -> None:
    """The cloud takes the node back: its pods are deleted, then the node."""
    for pod in list(fleet.pods.values()):
        if pod.node == node:
            body = fleet.cluster.objects[pod.key]
            target = {"type": "DisruptionTarget", "status": "True"}
            body["status"]["conditions"] = [*body["status"]["conditions"], target]
            body["metadata"]["deletionTimestamp"] = f"{fleet.true_time:%Y-%m-%dT%H:%M:%SZ}"
            fleet.cluster.touch(pod.key)


def _remove_node(fleet: BatchFleet, node: str) -> None:
    fleet.lose_node(node)
    fleet.cluster.discard(ObjectKey(NODES.plural, "", node))
    fleet.return_node(node)


def _flip_suspend(fleet: BatchFleet, _target: str) -> None:
    fleet.set_suspended(suspended=int(fleet.now) % 10 < 5)


def _resume(fleet: BatchFleet, _target: str) -> None:
    fleet.set_suspended(suspended=False)


def _suspend(fleet: BatchFleet, _target: str) -> None:
    fleet.set_suspended(suspended=True)


def _erase_status(fleet: BatchFleet, _target: str) -> None:
    if fleet.status:
        fleet.cluster.remove(NIGHT, "status")


def _set_clock(fleet: BatchFleet, _target: str, *, hours: float) -> None:
    fleet.operator.jump = timedelta(hours=hours)


def _restart_operator(fleet: BatchFleet, _target: str) -> None:
    fleet.operator.restart()


def _set_operator(fleet: BatchFleet, _target: str, *, down: bool) -> None:
    fleet.operator_down = down
    if down:
        fleet.operator.restart()


def _set_api(fleet: BatchFleet, _target: str, *, away: bool) -> None:
    fleet.api_away = away


def _set_quota(fleet: BatchFleet, _target: str) -> None:
    """No pod may be created; the running one ends, so that the next is refused."""
    fleet.quota = "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"
    for pod in fleet.working_pods():
        if pod.runner is not None:
            pod.runner.kill()


def _lift_quota(fleet: BatchFleet, _target: str) -> None:
    fleet.quota = None


def _delete_account(fleet: BatchFleet, _target: str) -> None:
    for key in list(fleet.cluster.objects):
        if key.name == BATCH_ACCOUNT and key.namespace == NIGHT.namespace:
            fleet.cluster.discard(key)


def _delete_batch(
    fleet: BatchFleet, _target: str, *, orphan: bool = False, finalizer: bool = False
) -> None:
    fleet.delete_batch(orphan=orphan, finalizer=finalizer)


def _remove_finalizer(fleet: BatchFleet, _target: str) -> None:
    if NIGHT in fleet.cluster.objects:
        deleted_at = fleet.deleted_at
        fleet.delete_batch()
        fleet.deleted_at = deleted_at


def _input_fault(name: str, change: Callable[[list[Row]], list[Row]]) -> Fault[BatchFleet]:
    """Return a change of the input while rows are answered, over the same file, taken back."""
    begin = partial(_change_input, change=change, in_place=True)
    end = partial(_restore_input, in_place=True)
    return Fault(name=name, targets=_working, begin=begin, end=end)


BATCH_FAULTS: tuple[Fault[BatchFleet], ...] = (
    _input_fault("input-prepended", _prepend),
    _input_fault("input-appended", _append),
    _input_fault("input-cut", _cut),
    _input_fault("input-reworded", _reword),
    Fault(
        name="input-replaced",
        targets=_working,
        begin=partial(_change_input, change=_prepend, in_place=False),
        end=partial(_restore_input, in_place=False),
    ),
    *(
        Fault(
            name=f"volume-{name}",
            targets=_unfinished,
            begin=partial(_set_volume, error=error),
            end=partial(_set_volume, error=0),
            seconds=(5, 120),
        )
        for name, error in (
            ("read-only", errno.EROFS),
            ("full", errno.ENOSPC),
            ("denied", errno.EACCES),
            ("stale", errno.ESTALE),
        )
    ),
    *(
        Fault(
            name=f"engine-{mode}",
            targets=_working,
            begin=partial(_set_engine, mode=mode),
            end=partial(_set_engine, mode="well"),
            seconds=(5, 120),
        )
        for mode in ("busy", "unavailable", "half", "frozen", "huge")
    ),
    Fault(name="runner-killed", targets=_working, begin=_kill_runner),
    Fault(name="engine-killed", targets=_working, begin=_kill_engine),
    Fault(
        name="runner-frozen",
        targets=_working,
        begin=partial(_freeze_runner, frozen=True),
        end=partial(_freeze_runner, frozen=False),
        seconds=(30, 300),
    ),
    Fault(name="pod-deleted-by-force", targets=_working, begin=_delete_pod),
    Fault(
        name="node-dies",
        targets=_nodes_in_use,
        begin=partial(_lose_node, dead=True),
        end=_return_node,
        seconds=(20, 300),
        removes_capacity=True,
    ),
    Fault(
        name="node-cut-off",
        targets=_nodes_in_use,
        begin=partial(_lose_node, dead=False),
        end=_return_node,
        seconds=(20, 300),
        removes_capacity=True,
    ),
    Fault(
        name="node-taken-back",
        targets=_nodes_in_use,
        begin=_announce_loss,
        end=_remove_node,
        seconds=(15, 15),
        removes_capacity=True,
    ),
    Fault(
        name="suspend-flips",
        targets=_unfinished,
        begin=_flip_suspend,
        during=_flip_suspend,
        end=_resume,
    ),
    Fault(name="suspended", targets=_unfinished, begin=_suspend, end=_resume, seconds=(20, 200)),
    Fault(name="status-erased", targets=_unfinished, begin=_erase_status),
    Fault(
        name="clock-ahead",
        targets=_everything,
        begin=partial(_set_clock, hours=48),
        end=partial(_set_clock, hours=0),
        seconds=(5, 60),
    ),
    Fault(
        name="clock-behind",
        targets=_everything,
        begin=partial(_set_clock, hours=-48),
        end=partial(_set_clock, hours=0),
        seconds=(5, 60),
    ),
    Fault(name="operator-restarts", targets=_everything, begin=_restart_operator),
    Fault(
        name="operator-away",
        targets=_everything,
        begin=partial(_set_operator, down=True),
        end=partial(_set_operator, down=False),
        seconds=(20, 200),
    ),
    Fault(
        name="api-away",
        targets=_everything,
        begin=partial(_set_api, away=True),
        end=partial(_set_api, away=False),
        seconds=(20, 300),
    ),
    Fault(
        name="quota",
        targets=_unfinished,
        begin=_set_quota,
        end=_lift_quota,
        seconds=(30, 200),
    ),
    Fault(name="account-deleted", targets=_everything, begin=_delete_account),
    Fault(
        name="deleted",
        targets=_unfinished,
        begin=_delete_batch,
        needs="batch",
        takes_away="batch",
        permits=_GONE,
    ),
    Fault(
        name="deleted-orphaned",
        targets=_unfinished,
        begin=partial(_delete_batch, orphan=True),
        needs="batch",
        takes_away="batch",
        permits=_GONE,
    ),
    Fault(
        name="deleted-with-finalizer",
        targets=_unfinished,
        begin=partial(_delete_batch, finalizer=True),
        end=_remove_finalizer,
        needs="batch",
        takes_away="batch",
        permits=_GONE,
        seconds=(60, 200),
    ),
)
