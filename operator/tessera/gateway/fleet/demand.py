"""Reports the requests of this gateway to the operator, which starts replicas for them."""

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import aiohttp

from tessera.api.gateway_demand import (
    DEMAND_PATH,
    MAX_REPORT_LIMITS,
    MAX_REPORT_SERVICES,
    PART_LIMITS,
    PART_SERVICES,
    DemandReport,
    ReportedAccount,
    ReportedDemand,
    ReportedLimit,
)
from tessera.api.ref import Ref
from tessera.domain.observed.charges import LimitCharges, LimitId
from tessera.domain.observed.demand import GatewayDemand, cut_demand
from tessera.ports import ClusterError

log = logging.getLogger("tessera")

INTERVAL_SECONDS = 1.0
# Of one report; the next one is newer anyway.
_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAccess:
    """How a gateway reaches and knows the operator."""

    find: Callable[[], Awaitable[Sequence[str]]]
    """Returns the addresses of the operator's pods; raises ClusterError."""
    host: str
    """Name in its certificate."""
    folder: Path
    """Has `token`, which it takes, and `ca.crt`; both are read when they are used."""
    port: int = 8443


class DemandReporter:
    """Sends a report each second, and at once when a request waits that was not waiting before.

    Of several operators only the leader takes reports: it is looked for until it has one.
    """

    def __init__(
        self,
        operator: OperatorAccess,
        gateway: str,
        read: Callable[[], Mapping[Ref, GatewayDemand]],
        due: asyncio.Event,
        *,
        read_charges: Callable[[], Mapping[LimitId, LimitCharges]] = dict,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Report what both return, by the name of the pod; `due` asks for a report now."""
        self._monotonic = monotonic
        self._operator = operator
        self._gateway = gateway
        self._read, self._read_charges = read, read_charges
        self._knows_limits: bool | None = None
        """Whether the leader takes what limits were charged, squares of prompts, those that are
        late by themselves and what overflows; an older one does not. None until it was asked."""
        self._session: aiohttp.ClientSession | None = None
        self._leader = ""
        self._problem = ""
        self._failing_since: float | None = None
        self._due = due

    @property
    def failing_seconds(self) -> float:
        """Return for how long no operator took a report; 0 while one does."""
        since = self._failing_since
        return 0.0 if since is None else self._monotonic() - since

    async def run(self) -> None:
        """Report forever; a problem is logged once, and retried."""
        try:
            while True:
                self._due.clear()
                await self.report()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_SECONDS):
                        await self._due.wait()
        finally:
            await self.close()

    async def report(self) -> None:
        """Send one report, what waits in its last part; a part that is refused costs no other.

        The last part alone is sent where the leader is not known: another one may know no parts.
        """
        last, *others = self._parts()
        if self._leader and self._knows_limits is not False and (limits := self._limit_parts()):
            refusal = await self._send_bodies(limits)
            if not refusal or refusal.endswith(f"HTTP {HTTPStatus.BAD_REQUEST.value}"):
                self._knows_limits = not refusal
        part_problem = await self._send_parts(others) if self._leader else ""
        body, problem = self._body(last), "no pod of the operator"
        try:
            for address in [self._leader] if self._leader else await self._operator.find():
                problem = await self._send(address, body)
                if not problem:
                    self._leader = address
                    break
        except ClusterError as error:
            problem = str(error)
        if problem:
            if self._failing_since is None:
                self._failing_since = self._monotonic()
            self._leader, self._knows_limits = "", None
            await self.close()
        else:
            self._failing_since = None
        problem = problem or part_problem
        if problem and problem != self._problem:
            log.warning("demand is not reported to the operator: %s, retrying", problem)
        self._problem = problem

    async def _send_parts(self, parts: Sequence[Sequence[tuple[Ref, GatewayDemand]]]) -> str:
        return await self._send_bodies(self._body(part, more_follows=True) for part in parts)

    async def _send_bodies(self, bodies: Iterable[bytes]) -> str:
        """Return what went wrong with one of them; what is late is left out."""
        problem = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT.total):
                for body in bodies:
                    problem = await self._send(self._leader, body) or problem
        return problem

    def _limit_parts(self) -> list[bytes]:
        """Return the parts of a report with what limits were charged, the most spent first.

        While the leader was not asked yet there is one at least.
        """
        rows = sorted(
            self._read_charges().items(),
            key=lambda row: (-max((each.settled for each in row[1].accounts), default=0), row[0]),
        )
        limits = [_reported_limit(*row) for row in rows[:MAX_REPORT_LIMITS]]
        part = DemandReport.model_construct(gateway=self._gateway, more_follows=True)
        fields = part.model_dump(by_alias=True, exclude_defaults=True)
        reported = [each.model_dump(by_alias=True, exclude_defaults=True) for each in limits]
        return [
            json.dumps({**fields, "limits": reported[first : first + PART_LIMITS]}).encode()
            for first in range(0, max(len(limits), self._knows_limits is None), PART_LIMITS)
        ]

    def _parts(self) -> Sequence[Sequence[tuple[Ref, GatewayDemand]]]:
        """Return the parts of a report, the one with what waits in each namespace first."""
        demand = self._read()
        if len(demand) <= PART_SERVICES:
            return [list(demand.items())]
        rows = list(cut_demand(demand, MAX_REPORT_SERVICES).items())
        rows.sort(key=lambda row: not row[1].queued)
        return [rows[first : first + PART_SERVICES] for first in range(0, len(rows), PART_SERVICES)]

    def _body(
        self, rows: Sequence[tuple[Ref, GatewayDemand]], *, more_follows: bool = False
    ) -> bytes:
        # The operator judges each row, so that one that is out of range costs no other.
        known = self._knows_limits
        services = tuple(
            ReportedDemand.model_construct(
                namespace=ref.namespace,
                name=ref.name,
                arrived=demand.arrived,
                sized=demand.tokens.requests,
                prompt_tokens=demand.tokens.prompt,
                answer_tokens=demand.tokens.answer,
                squares=demand.tokens.prompt_squares if known else 0,
                waited=demand.tokens.waited if known else 0,
                overflowed=demand.tokens.overflowed if known else 0,
                overflow_nanos=demand.tokens.overflow_nanos if known else 0,
                routed=demand.tokens.routed if known else 0,
                late_alone=demand.tokens.late_alone if known else 0,
                queued=demand.queued,
                in_flight=demand.in_flight,
                predicted_seconds=demand.predicted_seconds,
            )
            for ref, demand in rows
        )
        report = DemandReport.model_construct(
            gateway=self._gateway, more_follows=more_follows, services=services
        )
        return report.model_dump_json(by_alias=True, exclude_defaults=True).encode()

    async def _send(self, address: str, body: bytes) -> str:
        """Return what went wrong; empty when the operator took the report."""
        host = f"[{address}]" if ":" in address else address
        url = f"https://{host}:{self._operator.port}{DEMAND_PATH}"
        try:
            token = (self._operator.folder / "token").read_text(encoding="ascii").strip()
            session = self._session = self._session or self._connect()
            async with session.post(
                url,
                data=body,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                server_hostname=self._operator.host,
            ) as response:
                if response.status == HTTPStatus.NO_CONTENT:
                    return ""
                if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    return "no operator leads"
                return f"{url}: HTTP {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{url}: {str(error) or type(error).__name__}"

    def _connect(self) -> aiohttp.ClientSession:
        """Return a session that trusts the authorities that are in the file now."""
        context = ssl.create_default_context(cafile=str(self._operator.folder / "ca.crt"))
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=_TIMEOUT)

    async def close(self) -> None:
        """Close the connection; the next report opens another one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _reported_limit(limit: LimitId, charges: LimitCharges) -> ReportedLimit:
    accounts = tuple(ReportedAccount.model_construct(**each._asdict()) for each in charges.accounts)
    return ReportedLimit.model_construct(
        budget=limit.budget,
        limit=limit.limit,
        start=charges.start,
        members=charges.members,
        accounts=accounts,
    )
