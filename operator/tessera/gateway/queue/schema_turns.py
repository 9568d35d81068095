"""The turns of tenants whose schemas an engine has to compile, which takes up to 10 s each."""

import asyncio

from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.refusals import RequestError

# Schemas that engines compiled, of all tenants.
MAX_KNOWN_SCHEMAS = 10_000
# Requests of one tenant that wait for a turn at one service.
MAX_WAITING_SCHEMAS = 64

# The UID of a service, and a tenant.
_Line = tuple[str, str]


class SchemaTurn:
    """The turn of one request; it ends once."""

    def __init__(self, turns: "SchemaTurns", line: _Line, schema: bytes) -> None:
        self._turns, self._line, self._schema = turns, line, schema
        self._has_ended = False

    def end(self) -> None:
        """Let the next request have its turn, since an engine has compiled this one's schema."""
        if not self._has_ended:
            self._turns.know(self._line, self._schema)
            self.leave()

    def leave(self) -> None:
        """Let the next request have its turn."""
        if not self._has_ended:
            self._has_ended = True
            self._turns.pass_on(self._line)


class SchemaTurns:
    """Lets each tenant have one new schema at a time at the engines of a service.

    A schema is known once an engine began to answer its tenant with it, or ended. Tenants do not
    wait for each other, nor do requests without a schema.
    """

    def __init__(self) -> None:
        # The oldest of a line first: no tenant learns which schemas others have, or displaces them.
        self._known: dict[_Line, dict[bytes, None]] = {}
        self._known_count = 0
        # Those that wait, by line, while one has the turn; each learns whether it has it now.
        self._waiting: dict[_Line, dict[asyncio.Future[bool], bytes]] = {}

    async def begin(
        self, model: OfferedModel, tenant: str, schema: bytes, seconds: float
    ) -> SchemaTurn | None:
        """Return the turn of a request, perhaps after a wait; None where its schema is known.

        Raises RequestError with status 429 where too many wait, and TimeoutError where it waited
        for so many seconds.
        """
        line = model.uid, tenant
        if schema in self._known.get(line, ()):
            return None
        waiting = self._waiting.get(line)
        if waiting is None:
            self._waiting[line] = {}
            return SchemaTurn(self, line, schema)
        if len(waiting) >= MAX_WAITING_SCHEMAS:
            reason = RequestReason.TENANT_QUEUE_FULL
            raise RequestError(reason, model.service, retry_seconds=seconds)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting[future] = schema
        try:
            async with asyncio.timeout(seconds):
                has_turn = await future
        except (TimeoutError, asyncio.CancelledError):
            if waiting.pop(future, None) is None and not future.cancelled() and future.result():
                # It got the turn just now.
                self.pass_on(line)
            raise
        return SchemaTurn(self, line, schema) if has_turn else None

    def know(self, line: _Line, schema: bytes) -> None:
        """Remember what an engine of a service has compiled, and let pass what waits with it."""
        known = self._known.setdefault(line, {})
        self._known_count += schema not in known
        known[schema] = None
        if self._known_count > MAX_KNOWN_SCHEMAS:
            self._forget_one()
        waiting = self._waiting[line]
        for future in [future for future, other in waiting.items() if other == schema]:
            self._wake(line, future, has_turn=False)

    def pass_on(self, line: _Line) -> None:
        """Give the turn of a line to the next request, if any waits."""
        future = next(iter(self._waiting[line]), None)
        if future is None:
            del self._waiting[line]
        else:
            self._wake(line, future, has_turn=True)

    def _forget_one(self) -> None:
        line = max(self._known, key=lambda line: len(self._known[line]))
        most = self._known[line]
        del most[next(iter(most))]
        self._known_count -= 1
        if not most:
            del self._known[line]

    def _wake(self, line: _Line, future: asyncio.Future[bool], *, has_turn: bool) -> None:
        del self._waiting[line][future]
        if not future.done():
            future.set_result(has_turn)
        elif has_turn:
            self.pass_on(line)
