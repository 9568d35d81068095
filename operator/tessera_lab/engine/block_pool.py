"""The KV cache in blocks: what is free, what is shared, and what may still be found."""

from collections import OrderedDict
from typing import NamedTuple

from tessera_lab.engine.requests import EngineLimits
from tessera_lab.engine.sequence_state import SequenceState


class PrefixHit(NamedTuple):
    """What the cache holds of an input; all of it from the first token on."""

    units: int = 0
    """Shared beginnings."""
    evictable: int = 0
    """Of these, held by nobody: to hold them costs free blocks."""
    private_blocks: int = 0
    """Further blocks, of the request's own run before it was preempted."""
    tokens: int = 0


class BlockPool:
    """Free blocks and, with a prefix cache, the contents that they still have.

    A shared beginning is held by every request that uses it and occupies its blocks once. What
    nobody holds is free and stays findable until its room is needed: the longest unused goes first,
    the end of a prompt before its beginning. Blocks that hold nothing are taken before those.

    Whoever needs `n` blocks takes them by `free -= n`; what had to be forgotten for that is settled
    when the contents are next looked at, since until then nobody can tell.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.free = limits.blocks - 1
        self.saved_by_sharing = 0
        """Blocks that sharing saves at present: those of all holders less those that exist."""
        self._limits = limits
        self._unit_tokens = limits.shared_tokens or limits.block_size
        self._unit_blocks = self._unit_tokens // limits.block_size
        self._ref_counts: dict[int, int] = {}
        """How many requests hold a shared beginning."""
        self._evictable: OrderedDict[int, int] = OrderedDict()
        """Free contents and their blocks, the longest unused first. Shared beginnings by their
        names; what a request had for itself by its arrival's number, negative."""
        self._evictable_blocks = 0

    def find(self, sequence: SequenceState) -> PrefixHit:
        """How much of its input is there. Its last token is always computed, never found."""
        shared = sequence.request.shared_prefixes
        if not self._limits.prefix_cache or not (shared or sequence.preemptions):
            return _NO_HIT
        self._evict_overwritten()
        max_units = (sequence.input_tokens - 1) // self._unit_tokens
        units = evictable = 0
        for name in shared[:max_units]:
            if name in self._evictable:
                evictable += 1
            elif name not in self._ref_counts:
                break
            units += 1
        private_blocks = 0
        if sequence.preemptions and units >= sequence.units:
            remaining = self._evictable.get(-sequence.order[1], 0)
            remaining -= (units - sequence.units) * self._unit_blocks
            private_blocks = max(
                0, min(remaining, sequence.full_blocks - units * self._unit_blocks)
            )
        tokens = units * self._unit_tokens + private_blocks * self._limits.block_size
        return PrefixHit(units, evictable, private_blocks, tokens)

    def cost(self, sequence: SequenceState, hit: PrefixHit) -> int:
        """Free blocks that its whole input needs."""
        needed = self._limits.blocks_for(sequence.input_tokens)
        return needed - (hit.units - hit.evictable) * self._unit_blocks

    def acquire(self, sequence: SequenceState, hit: PrefixHit) -> None:
        """Take what was found; its tokens count as computed."""
        ref_counts, evictable, unit = self._ref_counts, self._evictable, self._unit_blocks
        if sequence.preemptions:
            self._evictable_blocks -= evictable.pop(-sequence.order[1], 0)
            self.free -= hit.private_blocks
        for name in sequence.request.shared_prefixes[: hit.units]:
            if name in ref_counts:
                ref_counts[name] += 1
                self.saved_by_sharing += unit
            else:
                ref_counts[name] = 1
                self._evictable_blocks -= evictable.pop(name)
                self.free -= unit
        sequence.units = hit.units
        sequence.computed = hit.tokens

    def share(self, sequence: SequenceState, tokens: int) -> None:
        """So many tokens of it are computed: others can use the shared beginnings among them.

        Where another one computed the same meanwhile, it keeps its own copy for itself.
        """
        shared = sequence.request.shared_prefixes
        for name in shared[sequence.units : tokens // self._unit_tokens]:
            if name in self._ref_counts:
                return
            if name in self._evictable:
                self._evict_overwritten()
                self._evictable_blocks -= self._evictable.pop(name, 0)
            self._ref_counts[name] = 1
            sequence.units += 1

    def release(self, sequence: SequenceState, tokens: int, block_count: int) -> None:
        """It leaves its blocks, `held` for itself and in shares, with so many of its tokens."""
        if not self._limits.prefix_cache:
            self.free += block_count
            return
        self._evict_overwritten()
        self.share(sequence, tokens)
        ref_counts, evictable, unit = self._ref_counts, self._evictable, self._unit_blocks
        freed = block_count - sequence.units * unit
        if freed:
            evictable[-sequence.order[1]] = freed
            sequence.full_blocks = tokens // self._limits.block_size
        for name in reversed(sequence.request.shared_prefixes[: sequence.units]):
            if ref_counts[name] > 1:
                ref_counts[name] -= 1
                self.saved_by_sharing -= unit
            else:
                del ref_counts[name]
                evictable[name] = unit
                freed += unit
        self._evictable_blocks += freed
        self.free += freed

    def clear(self) -> None:
        """Give up all contents that nobody holds; their blocks were free already."""
        self._evictable.clear()
        self._evictable_blocks = 0

    def _evict_overwritten(self) -> None:
        """Give up contents whose blocks have been taken."""
        excess = self._evictable_blocks - self.free
        if excess <= 0:
            return
        evictable = self._evictable
        while excess > 0:
            name, blocks = evictable.popitem(last=False)
            if name < 0 and blocks > excess:
                evictable[name] = blocks - excess
                evictable.move_to_end(name, last=False)
                blocks = excess
            excess -= blocks
        self._evictable_blocks = self.free + excess


_NO_HIT = PrefixHit()
