"""The endpoint at which gateways report their requests, so that the fleet follows them at once.

With them they report what limits of basis Charge were charged, by which budgets act.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from sys import intern

from pydantic import ValidationError

from tessera.api.gateway_demand import (
    DEMAND_PATH,
    MAX_REPORT_BYTES,
    MAX_REPORT_LIMITS,
    MAX_REPORT_SERVICES,
    TOO_MANY_SERVICES,
    DemandReport,
    ReportedDemand,
    fault_of,
    read_report,
)
from tessera.api.ref import Ref
from tessera.controller.https_server import Endpoint, HttpsServer
from tessera.domain.observed.charges import (
    OUTSIDE,
    AccountCharge,
    LimitCharges,
    LimitId,
    ReceivedCharges,
)
from tessera.domain.observed.demand import (
    MAX_REPORT_AGE,
    NO_TOKENS,
    ArrivedTokens,
    GatewayDemand,
    GatewayReport,
    current_reports,
)
from tessera.ports import Clock, RejectedDemand
from tessera.reconcile.observe import Observations

log = logging.getLogger("tessera")

# Gateways keep their connection; it is renewed, since certificates are.
_MAX_SECONDS = 60
_LOOP_SECONDS = 5.0
MAX_GATEWAYS = 64


class DemandReceiver:
    """Keeps the last report of each gateway; the only writer of `gateway_reports`."""

    def __init__(
        self,
        observations: Observations,
        clock: Clock,
        wake: Callable[[], None],
        is_leader: Callable[[], bool],
        count_rejected: Callable[[RejectedDemand, int], None],
    ) -> None:
        self._observations = observations
        self._clock = clock
        self._wake = wake
        self._is_leader = is_leader
        self._count_rejected = count_rejected
        self._logged_fault = ""

    def reject(self, reason: RejectedDemand, fault: str, count: int = 1) -> None:
        """Count what is left out; a fault that comes again each second is logged once."""
        self._count_rejected(reason, count)
        if fault != self._logged_fault:
            self._logged_fault = fault
            log.warning("demand: %s: %s", reason, fault)

    def count_gateways(self) -> int:
        """Return how many gateways report; also other threads may ask."""
        return len(current_reports(self._observations.gateway_reports.values(), self._clock()))

    def receive(self, report: DemandReport, row_faults: Sequence[str] = ()) -> HTTPStatus:
        """Keep a report, called in the event loop; `row_faults` are those of invalid rows.

        A standby takes none: only a leader plans.
        """
        if not self._is_leader():
            return HTTPStatus.SERVICE_UNAVAILABLE
        if row_faults:
            fault = f"{report.gateway}: {row_faults[0]}"
            self.reject(RejectedDemand.INVALID_ROW, fault, len(row_faults))
        at, last = self._clock(), self._observations.gateway_reports
        current = {
            gateway: old
            for gateway, old in last.items()
            if gateway != report.gateway and abs(at - old.at) <= MAX_REPORT_AGE
        }
        if len(current) >= MAX_GATEWAYS:
            fault = f"{MAX_GATEWAYS} gateways report already"
            self.reject(RejectedDemand.TOO_MANY_GATEWAYS, fault)
            return HTTPStatus.TOO_MANY_REQUESTS
        before = last.get(report.gateway)
        if before is not None and report.limits:
            charges = _received(before, report, at)
            if _lacking(charges) - _lacking(before.charges):
                self._wake()
            before = replace(before, charges=charges)
        known = before or GatewayReport(at=at)
        demand = self._demand(report, MAX_REPORT_SERVICES - len(known.parts))
        if not report.more_follows:
            after = known.followed_by(at, demand)
            self._observations.gateway_reports = {**current, report.gateway: after}
            if any(
                row.queued and not (ref in known.demand and known.demand[ref].queued)
                for ref, row in after.demand.items()
            ):
                self._wake()
        elif before is not None:
            # A gateway is known by the last part of a report: before, it would seem without any.
            after = replace(before, parts={**before.parts, **demand})
            self._observations.gateway_reports = {**current, report.gateway: after}
        return HTTPStatus.NO_CONTENT

    def _demand(self, report: DemandReport, limit: int) -> Mapping[Ref, GatewayDemand]:
        """Return the rows of a report up to a number."""
        if len(report.services) > limit:
            fault = f"{report.gateway}: {TOO_MANY_SERVICES}"
            self.reject(RejectedDemand.INVALID_ROW, fault, len(report.services) - limit)
        # The reports of a minute are remembered: most name the same services.
        return {
            Ref(intern(row.namespace), intern(row.name)): GatewayDemand(
                arrived=row.arrived,
                tokens=_tokens(row),
                queued=row.queued,
                in_flight=row.in_flight,
                predicted_seconds=row.predicted_seconds,
            )
            for row in report.services[:limit]
        }


def _tokens(row: ReportedDemand) -> ArrivedTokens:
    sized = (row.prompt_tokens, row.answer_tokens, row.squares) if row.sized else (0, 0, 0)
    overflow = (row.waited, row.overflowed, row.overflow_nanos, row.routed)
    if not (row.sized or any(overflow)):
        # Most rows share the one without any.
        return NO_TOKENS
    return ArrivedTokens(row.sized, *sized, *overflow, min(row.sized, row.late_alone))


def _received(
    before: GatewayReport, report: DemandReport, at: datetime
) -> Mapping[LimitId, ReceivedCharges]:
    """Return what a gateway reports of limits, of its last reports what is not old yet."""
    recent = {
        limit: received
        for limit, received in before.charges.items()
        if abs(at - received.at) <= MAX_REPORT_AGE
    }
    rows = report.limits[: max(0, MAX_REPORT_LIMITS - len(recent))]
    return recent | {
        LimitId(row.budget, row.limit): ReceivedCharges(
            at=at,
            charges=LimitCharges(
                start=row.start,
                members=row.members,
                accounts=tuple(
                    AccountCharge(each.settled, each.lent, each.member, each.need, each.generation)
                    for each in row.accounts
                ),
            ),
        )
        for row in rows
    }


def _lacking(charges: Mapping[LimitId, ReceivedCharges]) -> set[LimitId]:
    """Return the limits of which a request needs more than is lent for providers."""
    return {
        limit
        for limit, received in charges.items()
        if limit.limit.startswith(OUTSIDE)
        and any(account.need for account in received.charges.accounts)
    }


def serve_demand(
    address: tuple[str, int],
    receiver: DemandReceiver,
    loop: asyncio.AbstractEventLoop,
    *,
    tls: Callable[[], ssl.SSLContext],
    check: Callable[[str, str], HTTPStatus],
) -> HttpsServer:
    """Take reports at `/demand` until the process ends."""

    async def receive(report: DemandReport, row_faults: Sequence[str]) -> HTTPStatus:
        return receiver.receive(report, row_faults)

    def hand_over(body: bytes) -> tuple[HTTPStatus, bytes]:
        try:
            report, row_faults = read_report(body)
        except ValidationError as error:
            receiver.reject(RejectedDemand.INVALID_REPORT, fault_of(error))
            return HTTPStatus.BAD_REQUEST, b""
        answer = asyncio.run_coroutine_threadsafe(receive(report, row_faults), loop)
        try:
            return answer.result(_LOOP_SECONDS), b""
        except TimeoutError:
            answer.cancel()
            return HTTPStatus.SERVICE_UNAVAILABLE, b""

    endpoint = Endpoint(
        method="POST", path=DEMAND_PATH, answer=hand_over, max_body_bytes=MAX_REPORT_BYTES
    )
    server = HttpsServer(address, endpoint, tls=tls, check=check, seconds=_MAX_SECONDS)
    server.start()
    return server
