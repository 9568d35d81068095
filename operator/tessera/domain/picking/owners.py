"""The replica that owns a conversation, the same at all gateways, which tell each other nothing.

Each turn may come to another gateway, whose record has nothing of the turns before. So all of them
order the replicas by the same keyed hashes, and expect a conversation at the first one. What that
is worth is counted in tokens, and so in seconds as everything else: load alone leads a request away
from its owner. Where engines do not have what their owner was expected to have, all of it counts
less there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from tessera.domain.gateway.prefixes import PromptBlocks
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.picking.prediction import RequestMeans, work_seconds
from tessera.domain.picking.prefix_record import PrefixRecords
from tessera.domain.picking.replica_state import ReplicaState

# Replicas are compared by one request, since the means of each gateway are its own.
_REQUEST = RequestShape(model="", input_tokens=512, max_output_tokens=128)
_MEANS = RequestMeans()
# This one and those of later turns: the more there are, the more is read again by and by.
_MOST_ANSWERS = 8
_KEY_BITS = 64
_MASK = 2**_KEY_BITS - 1
# As many as a float tells apart.
_DRAW_BITS = 53
_DRAWS = 2**_DRAW_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPeers:
    """The gateways of one installation, each of which may get the next turn."""

    count: int = 1
    """This one included."""
    secret: bytes = field(default=b"", repr=False)
    """By which all of them hash, so that no client chooses an owner; empty before it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """What the owner of a prompt counts for."""

    uid: str
    is_of_beginning: bool
    """It owns what precedes the first user message, and so this conversation."""
    promised_tokens: int
    """Those that earlier requests left there if all gateways sent them to the owner; 0 for none."""
    expected_tokens: int
    """Those of them that it most likely holds, and those that it does by the own record."""
    saved_tokens: float
    """Those that later turns are spared if this one is sent to the owner."""


class Owners:
    """The replicas of one service that own conversations: those that are ready and stay."""

    def __init__(self, states: Sequence[ReplicaState]) -> None:
        self._uids = [state.replica.uid for state in states]
        self._places = list[tuple[int, float, ReplicaState]]()
        """Of each a hash of its UID, and the requests that it answers in a second."""
        for state in states:
            if state.ready_at is not None and not state.replica.leaving:
                uid = blake2b(state.replica.uid.encode(), digest_size=_KEY_BITS // 8).digest()
                rate = 1 / work_seconds(state.replica, _REQUEST, _MEANS)
                self._places.append((int.from_bytes(uid), rate, state))
        self._differ = len({rate for _, rate, _ in self._places}) > 1

    def find(self, key: int) -> ReplicaState | None:
        """Return the owner of what has this key; None where no replica may be.

        It is weighted rendezvous hashing: a replica that comes or goes moves its own share alone,
        at once. What began before it came is read once more, and its trust shows how much.
        """
        owner, least = None, math.inf
        for uid, rate, state in self._places:
            drawn = _mixed(key ^ uid)
            # The first of events that come at these rates, which is the least draw of equal ones.
            moment = -math.log1p(-drawn / _DRAWS) / rate if self._differ else drawn
            if moment < least:
                owner, least = state, moment
        return owner

    def ownership(
        self,
        prompt: PromptBlocks,
        records: PrefixRecords,
        means: RequestMeans,
        gateways: int,
    ) -> Ownership | None:
        """Return what the owner of a prompt counts for; None where the own record knows better.

        The records are of one of so many gateways.
        """
        turns = prompt.turns
        if turns is None or gateways < 2:
            return None
        known_tokens = records.known_tokens(prompt, self._uids)
        if turns.earlier_tokens and known_tokens > turns.opening_tokens:
            return None
        promised_tokens, going_on = turns.earlier_tokens, means.going_on
        owner = self._owner_of_beginning(prompt, records, known_tokens)
        is_of_beginning = owner is not None
        if owner is None:
            owner = self.find(turns.key)
        else:
            # Whether other prompts begin alike, the trust shows.
            promised_tokens, going_on = max(promised_tokens, turns.beginning_tokens), 1.0
        if owner is None:
            return None
        uid = owner.replica.uid
        (held_tokens,) = records.held_tokens(prompt, (uid,))
        trust = records.trust(uid, prompt.owner)
        expected_tokens = held_tokens + int(trust * max(0, promised_tokens - held_tokens))
        # One of the later turns comes to another gateway, which expects the conversation there.
        elsewhere = going_on * (gateways - 1) / (gateways - going_on)
        answers = 1 / max(1 - means.going_on, 1 / _MOST_ANSWERS)
        later_tokens = prompt.prompt_tokens + answers * means.output_tokens
        return Ownership(
            uid=uid,
            is_of_beginning=is_of_beginning,
            promised_tokens=promised_tokens,
            expected_tokens=expected_tokens,
            saved_tokens=trust * elsewhere * max(0.0, later_tokens - expected_tokens),
        )

    def _owner_of_beginning(
        self, prompt: PromptBlocks, records: PrefixRecords, known_tokens: int
    ) -> ReplicaState | None:
        """Return the owner of what precedes the first user message, where that is long.

        It owns a conversation that begins while no replica is known to have that. Its next turns
        find it there by what was noted, since the first one made it known.
        """
        turns = prompt.turns
        if turns is None or 2 * turns.beginning_tokens <= turns.opening_tokens:
            return None
        owner = self.find(turns.beginning_key)
        # Its last block has some of the first user message, too.
        is_known = known_tokens + prompt.tokens_per_block >= turns.beginning_tokens
        if owner is None or (is_known and records.noted_owner(prompt) != owner.replica.uid):
            return None
        return owner


def _mixed(bits: int) -> int:
    """Return bits of which each depends on all that are given, as MurmurHash3 ends."""
    bits = (bits ^ bits >> 33) * 0xFF51AFD7ED558CCD & _MASK
    bits = (bits ^ bits >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return (bits ^ bits >> 33) >> (_KEY_BITS - _DRAW_BITS)
