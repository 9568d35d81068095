"""The KV cache in blocks: what is free, what is shared, and what may still be found."""

from collections import OrderedDict
from typing import NamedTuple

from tessera.domain.engine.sequence import Sequence
from tessera.domain.engine_requests import Limits


class Found(NamedTuple):
    """What the cache holds of an input; all of it from the first token on."""

    units: int = 0
    """Shared beginnings."""
    parked: int = 0
    """Of these, held by nobody: to hold them costs free blocks."""
    own: int = 0
    """Further blocks, of the request's own run before it was preempted."""
    tokens: int = 0


class Blocks:
    """Free blocks and, with a prefix cache, the contents that they still have.

    A shared beginning is held by every request that uses it and occupies its blocks once. What
    nobody holds is free and stays findable until its room is needed: the longest unused goes first,
    the end of a prompt before its beginning. Blocks that hold nothing are taken before those.

    Whoever needs `n` blocks takes them by `free -= n`; what had to be forgotten for that is settled
    when the contents are next looked at, since until then nobody can tell.
    """

    def __init__(self, limits: Limits) -> None:
        self.free = limits.blocks - 1
        self.repeated = 0
        """Blocks that sharing saves at present: those of all holders less those that exist."""
        self._limits = limits
        self._unit_tokens = limits.shared_tokens or limits.block_size
        self._unit = self._unit_tokens // limits.block_size
        self._holders: dict[int, int] = {}
        """How many requests hold a shared beginning."""
        self._parked: OrderedDict[int, int] = OrderedDict()
        """Free contents and their blocks, the longest unused first. Shared beginnings by their
        names; what a request had for itself by its arrival's number, negative."""
        self._parked_blocks = 0

    def find(self, sequence: Sequence) -> Found:
        """How much of its input is there. Its last token is always computed, never found."""
        shared = sequence.request.shared
        if not self._limits.prefix_cache or not (shared or sequence.preemptions):
            return _NOTHING
        self._forget()
        most = (sequence.input_tokens - 1) // self._unit_tokens
        units = parked = 0
        for name in shared[:most]:
            if name in self._parked:
                parked += 1
            elif name not in self._holders:
                break
            units += 1
        own = 0
        if sequence.preemptions and units >= sequence.units:
            left = self._parked.get(-sequence.order[1], 0)
            left -= (units - sequence.units) * self._unit
            own = max(0, min(left, sequence.full_blocks - units * self._unit))
        tokens = units * self._unit_tokens + own * self._limits.block_size
        return Found(units, parked, own, tokens)

    def cost(self, sequence: Sequence, found: Found) -> int:
        """Free blocks that its whole input needs."""
        needed = self._limits.blocks_for(sequence.input_tokens)
        return needed - (found.units - found.parked) * self._unit

    def hold(self, sequence: Sequence, found: Found) -> None:
        """Take what was found; its tokens count as computed."""
        holders, parked, unit = self._holders, self._parked, self._unit
        if sequence.preemptions:
            self._parked_blocks -= parked.pop(-sequence.order[1], 0)
            self.free -= found.own
        for name in sequence.request.shared[: found.units]:
            if name in holders:
                holders[name] += 1
                self.repeated += unit
            else:
                holders[name] = 1
                self._parked_blocks -= parked.pop(name)
                self.free -= unit
        sequence.units = found.units
        sequence.computed = found.tokens

    def share(self, sequence: Sequence, tokens: int) -> None:
        """So many tokens of it are computed: others can use the shared beginnings among them.

        Where another one computed the same meanwhile, it keeps its own copy for itself.
        """
        shared = sequence.request.shared
        for name in shared[sequence.units : tokens // self._unit_tokens]:
            if name in self._holders:
                return
            if name in self._parked:
                self._forget()
                self._parked_blocks -= self._parked.pop(name, 0)
            self._holders[name] = 1
            sequence.units += 1

    def release(self, sequence: Sequence, tokens: int, held: int) -> None:
        """It leaves its blocks, `held` for itself and in shares, with so many of its tokens."""
        if not self._limits.prefix_cache:
            self.free += held
            return
        self._forget()
        self.share(sequence, tokens)
        holders, parked, unit = self._holders, self._parked, self._unit
        freed = held - sequence.units * unit
        if freed:
            parked[-sequence.order[1]] = freed
            sequence.full_blocks = tokens // self._limits.block_size
        for name in reversed(sequence.request.shared[: sequence.units]):
            if holders[name] > 1:
                holders[name] -= 1
                self.repeated -= unit
            else:
                del holders[name]
                parked[name] = unit
                freed += unit
        self._parked_blocks += freed
        self.free += freed

    def clear(self) -> None:
        """Give up all contents that nobody holds; their blocks were free already."""
        self._parked.clear()
        self._parked_blocks = 0

    def _forget(self) -> None:
        """Give up contents whose blocks have been taken."""
        over = self._parked_blocks - self.free
        if over <= 0:
            return
        parked = self._parked
        while over > 0:
            name, blocks = parked.popitem(last=False)
            if name < 0 and blocks > over:
                parked[name] = blocks - over
                parked.move_to_end(name, last=False)
                blocks = over
            over -= blocks
        self._parked_blocks = self.free + over


_NOTHING = Found()
