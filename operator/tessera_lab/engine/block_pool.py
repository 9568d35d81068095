"""The KV cache in blocks: free blocks, shared blocks, and evictable contents."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from tessera_lab.engine.requests import EngineLimits
from tessera_lab.engine.sequence_state import SequenceState


class PrefixHit(NamedTuple):
    """The part of an input that the cache holds, counted from its first token."""

    units: int = 0
    """Shared prefixes."""
    evictable: int = 0
    """Shared prefixes with no reference; acquiring them takes free blocks."""
    private_blocks: int = 0
    """Further full blocks that the request itself filled before it was preempted."""
    tokens: int = 0


class BlockPool:
    """Free blocks and, with a prefix cache, the contents that they still have.

    Every request that uses a shared prefix holds a reference to it, and it occupies its blocks
    once. Without references it is free and stays findable until its blocks are needed. Eviction is
    least recently used first and takes the end of a prompt before its beginning; blocks without
    contents are taken before all others.

    A caller that needs `n` blocks takes them by `free -= n`. Evictions for that are settled when
    the contents are next read, since no reader can see the difference before.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.free = limits.blocks - 1
        self.saved_by_sharing = 0
        """Blocks that sharing saves: those of all references less those that exist."""
        self._limits = limits
        self.unit_tokens = limits.shared_tokens or limits.block_size
        self._unit_blocks = self.unit_tokens // limits.block_size
        self._ref_counts: dict[int, int] = {}
        """Requests that hold each shared prefix."""
        self._evictable: OrderedDict[int, int] = OrderedDict()
        """Evictable contents and their blocks, least recently used first. The key is the name of a
        shared prefix, or the negative arrival number of a request for its private blocks."""
        self._evictable_blocks = 0

    def find(self, sequence: SequenceState) -> PrefixHit:
        """Return the cached part of its input. The last token is always computed, never found."""
        shared = sequence.request.shared_prefixes
        if not self._limits.prefix_cache or not (shared or sequence.preemptions):
            return _NO_HIT
        self._evict_overwritten()
        max_units = (sequence.input_tokens - 1) // self.unit_tokens
        units = evictable = 0
        for name in shared[:max_units]:
            if name in self._evictable:
                evictable += 1
            elif name not in self._ref_counts:
                break
            units += 1
        private = 0
        if sequence.preemptions and units >= sequence.shared_units:
            remaining = self._evictable.get(-sequence.queue_key[1], 0)
            remaining -= (units - sequence.shared_units) * self._unit_blocks
            private = max(0, min(remaining, sequence.full_blocks - units * self._unit_blocks))
        tokens = units * self.unit_tokens + private * self._limits.block_size
        return PrefixHit(units, evictable, private, tokens)

    def known_units(self, names: Sequence[int]) -> int:
        """Return how many of these shared prefixes, from the first on, are cached."""
        self._evict_overwritten()
        known = 0
        while known < len(names) and (
            names[known] in self._ref_counts or names[known] in self._evictable
        ):
            known += 1
        return known

    def held_units(self, names: Sequence[int]) -> int:
        """Return how many of these shared prefixes, from the first on, requests hold now."""
        return bisect_left(names, True, key=lambda name: name not in self._ref_counts)

    def cost(self, sequence: SequenceState, hit: PrefixHit) -> int:
        """Return the free blocks that its whole input needs."""
        needed = self._limits.blocks_for(sequence.input_tokens)
        return needed - (hit.units - hit.evictable) * self._unit_blocks

    def acquire(self, sequence: SequenceState, hit: PrefixHit) -> None:
        """Take the blocks of a hit; their tokens count as computed."""
        ref_counts, evictable, unit = self._ref_counts, self._evictable, self._unit_blocks
        if sequence.preemptions:
            self._evictable_blocks -= evictable.pop(-sequence.queue_key[1], 0)
            self.free -= hit.private_blocks
        for name in sequence.request.shared_prefixes[: hit.units]:
            if name in ref_counts:
                ref_counts[name] += 1
                self.saved_by_sharing += unit
            else:
                ref_counts[name] = 1
                self._evictable_blocks -= evictable.pop(name)
                self.free -= unit
        sequence.shared_units = hit.units
        sequence.computed = hit.tokens

    def share(self, sequence: SequenceState, tokens: int) -> None:
        """Publish the shared prefixes among the computed `tokens` of a sequence.

        Where another request published the same prefix meanwhile, this one keeps a private copy.
        """
        shared = sequence.request.shared_prefixes
        for name in shared[sequence.shared_units : tokens // self.unit_tokens]:
            if name in self._ref_counts:
                return
            if name in self._evictable:
                self._evict_overwritten()
                self._evictable_blocks -= self._evictable.pop(name, 0)
            self._ref_counts[name] = 1
            sequence.shared_units += 1

    def release(self, sequence: SequenceState, tokens: int, block_count: int) -> None:
        """Give back the `block_count` blocks of a sequence, private and shared ones, with its
        `tokens`."""
        if not self._limits.prefix_cache:
            self.free += block_count
            return
        self._evict_overwritten()
        self.share(sequence, tokens)
        ref_counts, evictable, unit = self._ref_counts, self._evictable, self._unit_blocks
        freed = block_count - sequence.shared_units * unit
        if freed:
            evictable[-sequence.queue_key[1]] = freed
            sequence.full_blocks = tokens // self._limits.block_size
        for name in reversed(sequence.request.shared_prefixes[: sequence.shared_units]):
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
        """Drop all contents without references; their blocks were free already."""
        self._evictable.clear()
        self._evictable_blocks = 0

    def _evict_overwritten(self) -> None:
        """Drop contents whose blocks have been taken."""
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
