"""The record of all budgets' spend outside their objects: a ConfigMap in the operator's namespace.

A TenantBudget that was deleted and made again, or restored without its status, gets its spend back
from here.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tessera.api.meta import Amount
from tessera.api.tenant_budget import LimitKey
from tessera.domain.budget.meter import OutsideLoan, SpendMeter, SpendRecord, WindowSpend
from tessera.domain.budget.periods import MAX_PERIOD, service_of
from tessera.domain.money import from_nanos, to_nanos
from tessera.domain.names import SPEND_RECORDS_NAME
from tessera.resources.api_resources import SPEND_RECORDS
from tessera.resources.manifest import ObjectManifest, labels, partial_manifest

_LABELS = labels(SPEND_RECORDS_NAME, SPEND_RECORDS_NAME, component="budgets")


class _RecordedWindow(BaseModel):
    model_config = ConfigDict(extra="ignore")

    start: AwareDatetime
    since: AwareDatetime
    spent: Amount


class _RecordedLoan(BaseModel):
    model_config = ConfigDict(extra="ignore")

    start: AwareDatetime
    amount: Amount
    used: Amount = Decimal(0)
    generation: int


class _RecordedSpend(BaseModel):
    model_config = ConfigDict(extra="ignore")

    currency: str
    as_of: AwareDatetime
    windows: dict[LimitKey, _RecordedWindow]
    incomplete: dict[LimitKey, AwareDatetime] = {}
    outside: dict[LimitKey, _RecordedLoan] = {}


def spend_records_manifest(
    namespace: str, records: Mapping[str, SpendRecord], at: datetime
) -> ObjectManifest:
    """Return the ConfigMap, without the records of windows that are over."""
    metadata = {"name": SPEND_RECORDS_NAME, "namespace": namespace, "labels": _LABELS}
    data = {
        name: _recorded(record.currency, record.meter, as_of).model_dump_json()
        for name, record in sorted(records.items())
        if (as_of := record.meter.as_of) is not None and as_of > at - MAX_PERIOD
    }
    return partial_manifest(SPEND_RECORDS, metadata, data=data)


def parse_spend_records(data: Mapping[str, str]) -> Mapping[str, SpendRecord]:
    """Return the records by the budgets' names; an unreadable one has no time."""
    return {name: _parse(text) for name, text in data.items()}


def _recorded(currency: str, meter: SpendMeter, as_of: datetime) -> _RecordedSpend:
    return _RecordedSpend(
        currency=currency,
        as_of=as_of,
        windows={
            name: _RecordedWindow(
                start=spend.start, since=spend.since, spent=from_nanos(spend.nanos)
            )
            for name, spend in meter.spend_by_window.items()
            # Single services may be too many for one ConfigMap: only the status has them.
            if service_of(name) is None
        },
        incomplete={
            name: start
            for name, start in meter.incomplete_windows.items()
            if service_of(name) is None
        },
        outside={
            name: _RecordedLoan(
                start=loan.start,
                amount=from_nanos(loan.counted),
                used=from_nanos(loan.used),
                generation=loan.generation,
            )
            for name, loan in meter.loans.items()
        },
    )


def _parse(text: str) -> SpendRecord:
    try:
        recorded = _RecordedSpend.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        return SpendRecord(currency="", meter=SpendMeter())
    return SpendRecord(
        currency=recorded.currency,
        meter=SpendMeter(
            as_of=recorded.as_of,
            names_replicas=False,
            spend_by_window={
                name: WindowSpend(window.start, to_nanos(window.spent), window.since)
                for name, window in recorded.windows.items()
            },
            incomplete_windows=recorded.incomplete,
            loans={
                name: OutsideLoan(
                    loan.start, to_nanos(loan.amount), to_nanos(loan.used), loan.generation
                )
                for name, loan in recorded.outside.items()
            },
        ),
    )
