"""Reading and writing the record of spend outside the TenantBudgets."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta

from tessera.domain.budget.meter import SpendRecord
from tessera.domain.names import SPEND_RECORDS_NAME
from tessera.ports import Cluster, ClusterError
from tessera.reconcile.writing.writer import Writer
from tessera.resources.api_resources import SPEND_RECORDS
from tessera.resources.manifest import ObjectKey
from tessera.resources.spend_records import parse_spend_records, spend_records_manifest

log = logging.getLogger("tessera")

WRITE_INTERVAL = timedelta(minutes=1)


class SpendRecordStore:
    """The ConfigMap with the record of all budgets."""

    def __init__(self, cluster: Cluster, namespace: str, writer: Writer) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._writer = writer
        self._written_at: datetime | None = None
        self._written: Mapping[str, object] = {}

    async def read(self) -> Mapping[str, SpendRecord]:
        """Return the records, none if nothing was written yet; raises ClusterError."""
        key = ObjectKey(SPEND_RECORDS.plural, self._namespace, SPEND_RECORDS_NAME)
        return parse_spend_records(await self._cluster.config_data(key))

    async def write(self, records: Mapping[str, SpendRecord], at: datetime) -> None:
        """Write the records if spend changed, at most once a minute; a refusal is logged.

        The record in each status is what grants depend on; this one is its copy.
        """
        amounts = {
            name: (
                record.currency,
                record.meter.spend_by_window,
                record.meter.incomplete_windows,
                {window: loan.counted for window, loan in record.meter.loans.items()},
            )
            for name, record in records.items()
        }
        recently = self._written_at is not None and at - self._written_at < WRITE_INTERVAL
        if recently or amounts == self._written:
            return
        try:
            await self._writer.send(spend_records_manifest(self._namespace, records, at))
        except ClusterError as error:
            log.warning("the copy of the spend was not written: %s", error)
        else:
            self._written = amounts
        self._written_at = at
