"""The bytes that requests hold in this process: bodies, and answers that wait for their clients.

Tenants share one budget. Bytes are taken before they are kept. Where there is no room for them, the
tenant that holds most by its weight gives way: the largest request of its key that holds most ends,
or of very many one that has half of its size at least. What protects running streams gives way
before any request does.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from operator import attrgetter
from typing import TypeAlias

from tessera.api.text import counted
from tessera.domain.gateway.directory import Identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.refusals import RequestError

MAX_HELD_BYTES = 96 * 2**20
# Of about the same size, among which the largest is looked for.
_MAX_COMPARED = 100

_Sender: TypeAlias = tuple[str | None, str | None]


class _SenderHoldings:
    """What the requests of one key or user hold, by the bits of their sizes: the last to grow last.

    So the largest is found without a look at each of thousands.
    """

    def __init__(self) -> None:
        self.size = 0
        self._by_bits: defaultdict[int, dict[Holding, None]] = defaultdict(dict)

    def add(self, holding: "Holding", bits: int) -> None:
        self._by_bits[bits][holding] = None

    def remove(self, holding: "Holding", bits: int) -> bool:
        """Return whether nothing is left."""
        del self._by_bits[bits][holding]
        if not self._by_bits[bits]:
            del self._by_bits[bits]
        return not self._by_bits

    def largest(self) -> "Holding":
        largest = self._by_bits[max(self._by_bits)]
        return max(islice(reversed(largest), _MAX_COMPARED), key=attrgetter("size"))


class _TenantHoldings:
    """What the requests of one tenant hold."""

    def __init__(self) -> None:
        self.size = 0
        self.weight = 1.0
        self.senders: defaultdict[_Sender, _SenderHoldings] = defaultdict(_SenderHoldings)
        self.spare: dict[Holding, None] = {}
        """Those that hold bytes which can be dropped, in the order in which they began to."""

    def drop_spare(self) -> bool:
        """Drop what the first of them can do without; False if none is left."""
        for holding in self.spare:
            holding.drop_spare()
            return True
        return False

    def largest(self) -> "Holding":
        """Return the largest of the key that holds most; of equal ones, the last to grow."""
        return max(self.senders.values(), key=attrgetter("size")).largest()


class Holding:
    """The bytes that one request holds."""

    def __init__(
        self,
        memory: "Memory",
        tenant: _TenantHoldings,
        identity: Identity,
        end: Callable[[], None],
    ) -> None:
        self._memory, self._tenant, self._end = memory, tenant, end
        self.identity = identity
        self.size = self._bits = 0
        self._sender = tenant.senders[identity.key, identity.user]
        self._sender.add(self, 0)
        self.exceeded = False
        """The request has to end, and holds nothing more."""
        self.spare = 0
        """Of its size what can be dropped without an end of the request."""
        self.on_drop: Callable[[], None] | None = None
        """Called when that is dropped."""

    def take(self, size: int) -> bool:
        """Hold so many bytes more; False where this request itself has to give way."""
        if self.exceeded:
            return False
        self._add(size)
        while (tenant := self._memory.without_room(self._tenant)) is not None:
            if tenant.drop_spare() or self._memory.drop_spare():
                continue
            holding = tenant.largest()
            holding.exceeded = True
            holding._add(-holding.size)
            if holding is self:
                return False
            holding._end()
        return True

    def spare_held(self, size: int) -> None:
        """Let so many of the bytes that it holds be dropped where others need room."""
        if not self.exceeded:
            self.spare += size
            self._tenant.spare[self] = None

    def take_room(self, size: int) -> bool:
        """Hold so many bytes more; False where others would have to give way."""
        if self.exceeded:
            return False
        self._add(size)
        if self._memory.without_room(self._tenant) is not None:
            self._add(-size)
            return False
        return True

    def take_spare(self, size: int) -> bool:
        """Hold bytes more that can be dropped; False where others would have to give way."""
        fits = self.take_room(size)
        if fits:
            self.spare_held(size)
        return fits

    def free_spare(self, size: int) -> None:
        """Hold so many fewer of the bytes that can be dropped, if they were not."""
        size = min(size, self.spare)
        self.spare -= size
        self._add(-size)

    def drop_spare(self) -> None:
        """Drop all bytes that can be."""
        self.free_spare(self.spare)
        self._tenant.spare.pop(self, None)
        if self.on_drop is not None:
            self.on_drop()

    def free(self, size: int) -> None:
        """Hold so many bytes less."""
        if not self.exceeded:
            self._add(-size)

    def close(self) -> None:
        """Hold nothing, since the request ended."""
        self._tenant.spare.pop(self, None)
        self.spare = 0
        # Who hears of it refers to this.
        self.on_drop = None
        self._add(-self.size)
        # What an engine sends late is not kept.
        self.exceeded = True
        if self._sender.remove(self, 0):
            del self._tenant.senders[self.identity.key, self.identity.user]

    def error(self) -> RequestError:
        """Return the error of a request that gave way."""
        memory = self._memory
        limits = counted(memory.limit, "byte"), memory.tenant_limit
        error = RequestError(RequestReason.HELD_BYTES_EXCEEDED, *limits)
        error.sender = self.identity
        return error

    def _add(self, size: int) -> None:
        self.size += size
        self._sender.size += size
        self._tenant.size += size
        self._memory.size += size
        bits = self.size.bit_length()
        if bits != self._bits:
            self._sender.add(self, bits)
            self._sender.remove(self, self._bits)
            self._bits = bits


class Memory:
    """The bytes of all requests of this process, and who holds them."""

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.limit = limit
        self.tenant_limit = limit // 2
        self.size = 0
        self._tenants: dict[str, _TenantHoldings] = {}

    def open(self, identity: Identity, weight: float, end: Callable[[], None]) -> Holding:
        """Return what a request holds, nothing yet; `end` is called when it has to give way."""
        tenant = self._tenants.get(identity.tenant)
        if tenant is None:
            self._tenants = {name: each for name, each in self._tenants.items() if each.senders}
            tenant = self._tenants[identity.tenant] = _TenantHoldings()
        tenant.weight = weight
        return Holding(self, tenant, identity, end)

    def without_room(self, tenant: _TenantHoldings) -> _TenantHoldings | None:
        """Return the tenant that has to give way after this one took bytes; None if all fit."""
        if tenant.size > self.tenant_limit:
            return tenant
        if self.size <= self.limit:
            return None
        return max(self._tenants.values(), key=lambda each: each.size / each.weight)

    def drop_spare(self) -> bool:
        """Drop what a stream of any tenant can do without, if all hold too much together."""
        tenants = self._tenants.values()
        return self.size > self.limit and any(tenant.drop_spare() for tenant in tenants)
