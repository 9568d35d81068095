"""Faults during a batch, by the names of `tests/fault_sequences/batch_faults.py`."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import httpx

from scenarios.batches import Batch
from tessera.domain.batch.names import RUNNER
from tessera.domain.names import ENGINE, PORT
from tests.fault_sequences.language import Fault
from world.client import RunningContainer

_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class BatchFleet:
    """A batch that answers rows; faults act in a thread of their own."""

    batch: Batch
    loop: asyncio.AbstractEventLoop

    def containers(self, name: str) -> list[RunningContainer]:
        """Return its runner or its engine while it runs."""
        container = self.batch.running_container(name)
        return [container] if container is not None else []

    def rows_done(self) -> int:
        progress = asyncio.run_coroutine_threadsafe(self.batch.progress(), self.loop)
        return int(progress.result(_TIMEOUT_SECONDS).get("done") or 0)


def _working(fleet: BatchFleet) -> Sequence[str]:
    """Return the pod of the attempt once it has answered a row."""
    pods = [runner.pod for runner in fleet.containers(RUNNER)]
    return pods if pods and fleet.rows_done() else ()


def _set_volume(fleet: BatchFleet, _pod: str, *, error: str | None) -> None:
    namespace = fleet.batch.namespace
    namespace.cluster.world.fail_writes(namespace.claim_folder, error)


def _freeze_runner(fleet: BatchFleet, pod: str, *, frozen: bool) -> None:
    namespace = fleet.batch.namespace
    world = namespace.cluster.world
    if pod in [runner.pod for runner in fleet.containers(RUNNER)]:
        (world.pause if frozen else world.resume)(namespace.name, pod, RUNNER)


def _set_engine(fleet: BatchFleet, _pod: str, *, frozen: bool) -> None:
    for engine in fleet.containers(ENGINE):
        url = f"http://{engine.address}:{PORT}/sim/{'freeze' if frozen else 'thaw'}"
        httpx.post(url, timeout=_TIMEOUT_SECONDS).raise_for_status()


def _kill(fleet: BatchFleet, _pod: str, *, name: str) -> None:
    namespace = fleet.batch.namespace
    for container in fleet.containers(name):
        namespace.cluster.world.kill(namespace.name, container.pod, name)


def _change_input(
    fleet: BatchFleet, _pod: str, *, change: Callable[[list[str]], list[str]]
) -> None:
    """Write over the same file, as `cp` does."""
    path = fleet.batch.namespace.claim_folder / f"{fleet.batch.name}.in.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    checked = path.with_suffix(".checked")
    if not checked.exists():
        checked.write_text("".join(rows), encoding="utf-8")
    path.write_text("".join(change(rows)), encoding="utf-8")


def _restore_input(fleet: BatchFleet, _pod: str) -> None:
    path = fleet.batch.namespace.claim_folder / f"{fleet.batch.name}.in.jsonl"
    path.write_text(path.with_suffix(".checked").read_text(encoding="utf-8"), encoding="utf-8")


def _prepend(rows: list[str]) -> list[str]:
    return [json.dumps(json.loads(rows[0]) | {"custom_id": "new"}) + "\n", *rows]


def _cut(rows: list[str]) -> list[str]:
    return rows[: len(rows) // 2]


BATCH_FAULTS: tuple[Fault[BatchFleet], ...] = (
    *(
        Fault(
            name=f"volume-{name}",
            targets=_working,
            begin=partial(_set_volume, error=error),
            end=partial(_set_volume, error=None),
            seconds=(6, 6),
        )
        for name, error in (("read-only", "EROFS"), ("full", "ENOSPC"), ("denied", "EACCES"))
    ),
    Fault(
        name="runner-frozen",
        targets=_working,
        begin=partial(_freeze_runner, frozen=True),
        end=partial(_freeze_runner, frozen=False),
        seconds=(4, 4),
    ),
    Fault(
        name="engine-frozen",
        targets=_working,
        begin=partial(_set_engine, frozen=True),
        end=partial(_set_engine, frozen=False),
        seconds=(10, 10),
    ),
    Fault(name="runner-killed", targets=_working, begin=partial(_kill, name=RUNNER)),
    Fault(name="engine-killed", targets=_working, begin=partial(_kill, name=ENGINE)),
    Fault(
        name="input-prepended",
        targets=_working,
        begin=partial(_change_input, change=_prepend),
        end=_restore_input,
        seconds=(6, 6),
    ),
    Fault(
        name="input-cut",
        targets=_working,
        begin=partial(_change_input, change=_cut),
        end=_restore_input,
        seconds=(6, 6),
    ),
)
BY_NAME: Mapping[str, Fault[BatchFleet]] = {fault.name: fault for fault in BATCH_FAULTS}
