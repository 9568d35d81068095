"""Write the statuses that are reported of kinds on which no other decision waits."""

from collections.abc import Iterator, Sequence
from functools import partial

from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.status.reporters import Report, reports
from tessera.reconcile.writing.write_order import Stage, Work, work_key
from tessera.reconcile.writing.writer import Writer, WriteStep


class StatusApplier:
    """Writes each status that changed; nothing else is decided here."""

    def __init__(self, writer: Writer, config: Config) -> None:
        self._writer, self._config = writer, config
        self._incremental = Incremental()

    def work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        """Yield the work of objects whose status is not as it is in the cluster."""
        for report in self._incremental.run(_changed, snapshot, plan, self._config):
            key = work_key(report.kind, report.observed.ref, Stage.STATUS)
            yield Work(key, partial(self.write_status, report))

    @WriteStep
    async def write_status(self, report: Report) -> list[str]:
        """Write a status; return what was refused."""
        kind, observed, status = report
        return await self._writer.apply_status(kind, observed.ref, status, observed.uid)


def _changed(snapshot: Snapshot, plan: Plan, config: Config) -> Sequence[Report]:
    return [
        report
        for report in reports(snapshot, plan, config)
        if report.status != report.observed.status
    ]
