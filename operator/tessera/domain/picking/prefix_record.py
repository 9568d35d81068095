"""What engines hold of earlier prompts, as far as their gateway can know.

The record of a replica has the blocks of the prompts that were sent to it, and evicts as its engine
does: least recently used first, and of a prompt the end before the beginning. So what a record has
of a prompt is always its beginning. Each answer says how many tokens were cached: a record that
promised more shrinks, and grows again with promises that were kept, up to the size of the cache.

All records share a budget of bytes. Beyond it the owner of prompts who takes most by its weight
gives way, with what it did not use for the longest time.
"""

import heapq
import math
from array import array
from bisect import bisect_left
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.gateway.prefixes import MAX_BLOCKS, PromptBlocks

MAX_RECORD_BYTES = 192 * 2**20
# Of a replica whose cache has an unknown size, until its answers show that it holds more.
DEFAULT_CACHE_TOKENS = 100_000

# What Python takes at most: a block is an entry of a table that has just grown, its key, and twice
# 8 bytes in an array; a use has its object, its array, places in two queues, and an empty one.
BYTES_PER_BLOCK, BYTES_PER_USE, BYTES_PER_OWNER = 170, 400, 1200
BYTES_PER_SESSION = 300
# Of one owner; a session that was not used for so many others is a new one.
_MAX_SESSIONS = 8192
# Parts of the budget and of an owner that are freed at once, so that owners are compared rarely,
# and of how many owners by one comparison.
_FREED_SHARE, _OWNERS_FREED_SHARE, _MAX_OWNERS = 1 / 1024, 1 / 8, 128
# That a record forgets at once: a million take seconds. It is more than one prompt brings.
_MAX_FORGOTTEN = 2 * MAX_BLOCKS
# Of the limit of a record: tokens of short prompts beside each other that count as of one.
_FILLER_SHARE = 1 / 64
# Of one answer, in the share of an owner's tokens that were there.
_CONFIRMED_WEIGHT = 1 / 16
# A promise that was kept lets a record grow by this share of it; one that misses by less was kept,
# since the bytes of a token are a mean.
_GROWTH = 1 / 8


class _Use:
    """One use of a prompt: the blocks that no later use has, and the tokens beside them."""

    __slots__ = (
        "answered_blocks",
        "blocks",
        "hashes",
        "other_tokens",
        "owner",
        "record",
        "tokens_per_block",
    )

    def __init__(
        self, record: "ReplicaPrefixes", owner: "_Owner", prompt: PromptBlocks, other_tokens: float
    ) -> None:
        self.record, self.owner = record, owner
        self.hashes = array("Q", prompt.hashes)
        """In the order of the prompt; at most half of them are of later uses."""
        self.blocks = len(self.hashes)
        """Those of them that no later use has."""
        self.answered_blocks = 0
        """Those at the beginning that an answer showed to be computed: others may be under way."""
        self.tokens_per_block = prompt.tokens_per_block
        self.other_tokens = other_tokens
        """Tokens in no full block: the end of the prompt, and the answer."""

    @property
    def is_empty(self) -> bool:
        return not self.blocks and not self.other_tokens


class _Uses:
    """Uses in their order, oldest first."""

    def __init__(self) -> None:
        self._uses = deque[_Use]()
        self._empty = 0

    def add(self, use: _Use) -> None:
        self._uses.append(use)

    def oldest(self) -> _Use:
        """Return the oldest one with blocks or other tokens."""
        uses = self._uses
        while uses[0].is_empty:
            uses.popleft()
            self._empty -= 1
        return uses[0]

    def emptied(self) -> None:
        """Count one that has nothing any more; of all, at most half are such."""
        self._empty += 1
        if 2 * self._empty > len(self._uses):
            self._uses = deque(use for use in self._uses if not use.is_empty)
            self._empty = 0


class _Owner:
    """Whose prompts find each other, and what all records have of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.size = BYTES_PER_OWNER
        self.uses = _Uses()
        self.sessions = OrderedDict[int, _Session]()
        """Those used last at the end."""


class _Session(NamedTuple):
    """Where the last prompt of a session went, and what of the next one may be cached there."""

    uid: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentPrompt:
    """A prompt that was sent to a replica."""

    prompt: PromptBlocks
    promised_blocks: int
    """Those that the record had before."""
    answered_blocks: int
    """Those of them that the engine had certainly computed."""
    use: _Use | None
    """None without a full block."""
    owner_tokens: int = 0
    """Those that the replica was to have as its owner; 0 where it does not own it."""

    @property
    def promised_tokens(self) -> int:
        """Return the tokens of the promised blocks."""
        return self.prompt.tokens(self.promised_blocks)


class ReplicaPrefixes:
    """The record of one replica."""

    def __init__(self, records: "PrefixRecords", cache_tokens: int | None) -> None:
        self.tokens = 0.0
        """What it holds."""
        self.trust: defaultdict[str, float] = defaultdict(lambda: 1.0)
        """Share of what it was to hold as an owner that its answers confirmed, by whose prompts: a
        client can have an engine compute what it has."""
        self.limit = float(DEFAULT_CACHE_TOKENS if cache_tokens is None else cache_tokens)
        """Tokens that it may hold; the answers move it."""
        self._most = math.inf if cache_tokens is None else float(cache_tokens)
        self._records = records
        self._last_use: dict[int, _Use] = {}
        """By the hash of a block."""
        self._uses = _Uses()
        self._filler: _Use | None = None
        """The newest use without blocks; it may be a little older than others."""
        self._suspect: str | None = None
        """Owner of the last prompt that was promised more than was there."""
        self._first_owner: str | None = None
        self._is_shared = False
        """It has had prompts of several owners."""

    def __len__(self) -> int:
        """Return the blocks that it has."""
        return len(self._last_use)

    def cached_blocks(self, prompt: PromptBlocks) -> int:
        """Return how many blocks of a prompt, from its beginning, the replica holds."""
        hashes, last_use = prompt.hashes, self._last_use
        if not hashes or hashes[0] not in last_use:
            return 0
        return bisect_left(hashes, True, key=lambda block: block not in last_use)

    def cached_tokens(self, prompt: PromptBlocks) -> int:
        """Return how many tokens of a prompt the replica is expected to hold.

        A prompt that goes on where an earlier one ended most likely has its last tokens and its
        answer, too, which fill no block.
        """
        blocks = self.cached_blocks(prompt)
        if not blocks:
            return 0
        use = self._last_use[prompt.hashes[blocks - 1]]
        beside = use.other_tokens if use.hashes[-1] == prompt.hashes[blocks - 1] else 0
        return min(prompt.prompt_tokens, prompt.tokens(blocks) + int(beside))

    def send(self, prompt: PromptBlocks, owner_tokens: int = 0) -> SentPrompt:
        """Record a prompt that is sent: what comes to the engine after it finds it there."""
        promised, answered = self.cached_blocks(prompt), 0
        if promised:
            answered = min(promised, self._last_use[prompt.hashes[promised - 1]].answered_blocks)
        use = self._add(prompt, 0, answered) if prompt.hashes else None
        return SentPrompt(
            prompt=prompt,
            promised_blocks=promised,
            answered_blocks=answered,
            use=use,
            owner_tokens=owner_tokens,
        )

    def complete(
        self,
        sent: SentPrompt,
        output_tokens: int,
        cached_share: float | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        """Record the end of an answer: until then the engine used the prompt.

        `cached_share` is the part of the prompt that the engine says that it had before, 0 to 1,
        and `prompt_tokens` how long it was; None where it says nothing.
        """
        if cached_share is not None:
            share = min(max(0.0, cached_share), 1.0)
            self._correct(sent, share * sent.prompt.prompt_tokens)
            self._confirm(sent, share * sent.prompt.prompt_tokens)
        prompt = sent.prompt if prompt_tokens is None else sent.prompt.counted(prompt_tokens)
        if prompt.hashes:
            # It gets all that the use at sending still has.
            self._add(prompt, output_tokens, len(prompt.hashes))
        else:
            self._fill(prompt.prompt_tokens + output_tokens)

    def fail(self, sent: SentPrompt) -> None:
        """Forget what this prompt alone would have brought to the cache: it got no answer."""
        for block in reversed(sent.prompt.hashes[sent.promised_blocks :]):
            if self._last_use.get(block) is sent.use:
                self._forget(block)

    def clear(self) -> bool:
        """Forget all, or so much of it as there is time for; return whether that was all."""
        self.limit = self._most = 0.0
        self._evict()
        return not self._last_use

    def drop(self, use: _Use, tokens: float = math.inf) -> None:
        """Forget so many tokens of a use: first those beside its blocks, then the last blocks."""
        beside = min(use.other_tokens, tokens)
        use.other_tokens -= beside
        self.tokens -= beside
        tokens -= beside
        if beside and use.is_empty:
            self._uses.emptied()
        while tokens > 0 and use.blocks:
            if self._last_use.get(block := use.hashes.pop()) is use:
                tokens -= use.tokens_per_block
                self._forget(block)

    def resize(self, cache_tokens: int) -> None:
        """Take the size of the engine's cache, once it is known."""
        if cache_tokens != self._most:
            self.limit = self._most = float(cache_tokens)
            self._evict()

    def _add(self, prompt: PromptBlocks, output_tokens: int, answered_blocks: int) -> _Use:
        hashes, last_use, records = prompt.hashes, self._last_use, self._records
        block_tokens = len(hashes) * prompt.tokens_per_block
        other_tokens = max(0.0, prompt.prompt_tokens - block_tokens) + output_tokens
        owner = records.owner(prompt)
        self._first_owner = self._first_owner or prompt.owner
        self._is_shared = self._is_shared or prompt.owner != self._first_owner
        use = _Use(self, owner, prompt, other_tokens)
        use.answered_blocks = answered_blocks
        records.count(owner, BYTES_PER_USE + len(hashes) * BYTES_PER_BLOCK)
        self._uses.add(use)
        owner.uses.add(use)
        if self._filler is not None and self._filler.other_tokens > _FILLER_SHARE * self.limit:
            self._filler = None
        self.tokens += block_tokens + other_tokens
        for block in hashes:
            former = last_use.get(block)
            last_use[block] = use
            if former is not None:
                self._lose_block(former)
        self._evict()
        records.make_room()
        return use

    def _fill(self, tokens: float) -> None:
        """Record tokens that are no beginning of any prompt, but take room."""
        if self._filler is None or self._filler.is_empty:
            self._filler = _Use(self, _NOBODY, _NO_PROMPT, 0.0)
            self._uses.add(self._filler)
        self._filler.other_tokens += tokens
        self.tokens += tokens
        self._evict()

    def _evict(self) -> None:
        """Forget what is too much; of very much, the rest with the next prompts."""
        least = max(0, len(self._last_use) - _MAX_FORGOTTEN)
        while self.tokens > self.limit and len(self._last_use) > least:
            self.drop(self._uses.oldest(), self.tokens - self.limit)

    def _forget(self, block: int) -> None:
        self._lose_block(self._last_use.pop(block))

    def _lose_block(self, use: _Use) -> None:
        """Count a block less of a use, which has it no more."""
        use.blocks -= 1
        self.tokens -= use.tokens_per_block
        size = BYTES_PER_BLOCK
        if not use.blocks:
            # A later prompt has its answer, too, in a conversation; else this errs by an answer.
            self.tokens -= use.other_tokens
            use.other_tokens, use.hashes = 0.0, _NO_HASHES
            self._uses.emptied()
            use.owner.uses.emptied()
            size += BYTES_PER_USE
        elif 2 * use.blocks < len(use.hashes):
            last_use = self._last_use
            use.hashes = array("Q", [each for each in use.hashes if last_use.get(each) is use])
        self._records.count(use.owner, -size)

    def _confirm(self, sent: SentPrompt, cached_tokens: float) -> None:
        """Learn how much of what it was to have as an owner it had, beyond its record."""
        known = sent.promised_tokens
        if sent.owner_tokens > known:
            confirmed = (cached_tokens - known) / (sent.owner_tokens - known)
            change = min(max(0.0, confirmed), 1.0) - self.trust[sent.prompt.owner]
            self.trust[sent.prompt.owner] += change * _CONFIRMED_WEIGHT

    def _correct(self, sent: SentPrompt, cached_tokens: float) -> None:
        """Move the limit by what was cached, which an engine may say as it likes.

        A client can have an engine compute what it has, as for the probabilities of a prompt. So
        among several owners a broken promise counts only if the last one was another owner's: none
        takes the record of others by his requests alone.
        """
        prompt = sent.prompt
        answered_tokens = prompt.tokens(sent.answered_blocks)
        missing = answered_tokens - cached_tokens
        if missing > max(prompt.tokens_per_block, _GROWTH * answered_tokens):
            suspect, self._suspect = self._suspect, prompt.owner
            if self._is_shared and suspect in (None, prompt.owner):
                return
            self.limit = max(0.0, min(self.limit, self.tokens) - missing)
            self._evict()
        elif cached_tokens:
            unpromised = cached_tokens - sent.promised_tokens
            self.limit = min(self._most, self.limit + max(unpromised, _GROWTH * cached_tokens))


_NO_HASHES = array("Q")
_NOBODY = _Owner("")
_NO_PROMPT = PromptBlocks(owner="", hashes=(), tokens_per_block=1.0, prompt_tokens=0)


class PrefixRecords:
    """The records of all replicas of one gateway."""

    def __init__(self, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self.size = 0
        """Bytes, at most `max_bytes` as long as one prompt fits."""
        self._max_bytes = max_bytes
        self._replicas: dict[str, ReplicaPrefixes] = {}
        # Those that are gone, and not forgotten as a whole yet.
        self._gone: list[ReplicaPrefixes] = []
        self._owners: dict[str, _Owner] = {}

    def replica(self, uid: str, cache_tokens: int | None = None) -> ReplicaPrefixes:
        """Return the record of a replica, empty at first; its cache holds so many tokens."""
        record = self._replicas.get(uid)
        if record is None:
            record = self._replicas[uid] = ReplicaPrefixes(self, cache_tokens)
        return record

    def forget(self, uid: str) -> None:
        """Forget a replica that is gone."""
        record = self._replicas.pop(uid, None)
        if record is not None and not record.clear():
            self._gone.append(record)

    def cached_tokens(self, prompt: PromptBlocks, uids: Sequence[str]) -> Sequence[int]:
        """Return the tokens of a prompt that each of these replicas need not compute, for `pick`.

        Where none has a block of it, they are those that its session promises.
        """
        tokens = self.held_tokens(prompt, uids)
        return tokens if any(tokens) else self.session_tokens(prompt, uids) or tokens

    def held_tokens(self, prompt: PromptBlocks, uids: Sequence[str]) -> list[int]:
        """Return the tokens of a prompt that each of these replicas holds, by its blocks."""
        replicas = self._replicas
        return [replicas[uid].cached_tokens(prompt) if uid in replicas else 0 for uid in uids]

    def known_tokens(self, prompt: PromptBlocks, uids: Sequence[str]) -> int:
        """Return the tokens in the blocks of a prompt that one of these replicas holds."""
        records = (self._replicas[uid] for uid in uids if uid in self._replicas)
        return prompt.tokens(max((record.cached_blocks(prompt) for record in records), default=0))

    def note_owner(self, prompt: PromptBlocks, uid: str) -> None:
        """Keep that a conversation was sent to the owner of its beginning."""
        if prompt.turns is not None:
            self._keep_session(prompt, prompt.turns.key, _Session(uid, 0))

    def noted_owner(self, prompt: PromptBlocks) -> str | None:
        """Return the UID that was noted of a conversation."""
        owner, turns = self._owners.get(prompt.owner), prompt.turns
        session = owner.sessions.get(turns.key) if owner is not None and turns is not None else None
        return session.uid if session is not None else None

    def trust(self, uid: str, owner: str) -> float:
        """Return the share of what a replica was to hold as an owner that it did hold, 0 to 1.

        It is of the prompts of one tenant, as `PromptBlocks.owner` names it.
        """
        record = self._replicas.get(uid)
        return 1.0 if record is None else record.trust.get(owner, 1.0)

    def session_tokens(self, prompt: PromptBlocks, uids: Sequence[str]) -> list[int]:
        """Return the tokens that the session of a prompt promises at each replica; empty for 0."""
        owner = self._owners.get(prompt.owner)
        if prompt.session is None or owner is None:
            return []
        session = owner.sessions.get(prompt.session)
        if session is None or session.uid not in uids:
            return []
        tokens = min(session.tokens, prompt.prompt_tokens)
        return [tokens if uid == session.uid else 0 for uid in uids]

    def complete(
        self,
        uid: str,
        sent: SentPrompt,
        output_tokens: int,
        cached_share: float | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        """Record the end of an answer, as `ReplicaPrefixes`, unless the replica is gone."""
        record = self._replicas.get(uid)
        if record is not None:
            record.complete(sent, output_tokens, cached_share, prompt_tokens)
            self._note_session(sent.prompt, uid, cached_share)

    def fail(self, uid: str, sent: SentPrompt) -> None:
        """Forget what a prompt without an answer would have brought to a replica."""
        record = self._replicas.get(uid)
        if record is not None:
            record.fail(sent)

    def _note_session(self, prompt: PromptBlocks, uid: str, cached_share: float | None) -> None:
        """Record where a prompt of a session was answered, and what was cached of it there.

        A session whose last prompt was computed there and found nothing does not begin alike, and
        is preferred nowhere until a prompt finds something again.
        """
        if prompt.session is None:
            return
        former = self.owner(prompt).sessions.get(prompt.session)
        is_alike = former is None or former.tokens > 0
        if former is not None and former.uid == uid and cached_share is not None:
            is_alike = cached_share > 0
        tokens = prompt.prompt_tokens if is_alike else 0
        self._keep_session(prompt, prompt.session, _Session(uid, tokens))

    def _keep_session(self, prompt: PromptBlocks, key: int, session: _Session) -> None:
        owner = self.owner(prompt)
        if owner.sessions.pop(key, None) is None:
            self.count(owner, BYTES_PER_SESSION)
        owner.sessions[key] = session
        if len(owner.sessions) > _MAX_SESSIONS:
            owner.sessions.popitem(last=False)
            self.count(owner, -BYTES_PER_SESSION)
        self.make_room()

    def owner(self, prompt: PromptBlocks) -> _Owner:
        """Return the owner of a prompt."""
        owner = self._owners.get(prompt.owner)
        if owner is None:
            owner = self._owners[prompt.owner] = _Owner(prompt.owner)
            self.size += owner.size
        owner.weight = prompt.weight
        return owner

    def count(self, owner: _Owner, size: int) -> None:
        """Count bytes more, or less, of an owner."""
        owner.size += size
        self.size += size
        if owner.size == BYTES_PER_OWNER:
            del self._owners[owner.name]
            self.size -= BYTES_PER_OWNER

    def make_room(self) -> None:
        """Let those give way who take most by their weights, until all fit."""
        if self._gone and self._gone[-1].clear():
            self._gone.pop()
        if self.size <= self._max_bytes:
            return
        target = self._max_bytes * (1 - _FREED_SHARE)
        while self.size > target:
            owners = heapq.nlargest(_MAX_OWNERS, self._owners.values(), key=_by_weight)
            most = _by_weight(owners[0])
            for owner in owners:
                # Who takes much less than the first gives way after that one did again.
                if self.size <= target or _by_weight(owner) < most * (1 - _OWNERS_FREED_SHARE):
                    break
                self._free(owner, target)

    def _free(self, owner: _Owner, target: float) -> None:
        least = owner.size * (1 - _OWNERS_FREED_SHARE)
        while self.size > target and owner.size > least:
            of_sessions = len(owner.sessions) * BYTES_PER_SESSION
            if 2 * of_sessions >= owner.size - BYTES_PER_OWNER:
                owner.sessions.popitem(last=False)
                self.count(owner, -BYTES_PER_SESSION)
            else:
                use = owner.uses.oldest()
                use.record.drop(use)


def _by_weight(owner: _Owner) -> float:
    return owner.size / owner.weight
