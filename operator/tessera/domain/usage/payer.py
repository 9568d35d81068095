"""Who pays for a request that ends: the tokens that its sender is charged, by how it ended.

Rate limits count by `charge.py`: the prompt once, whoever is to blame, and what was
delivered. Money goes otherwise where an engine, a node or the gateway fails: before a token the
sender pays nothing. What engines computed and no sender pays is a row of the owner of the service,
of class WASTE.

| ending | the sender pays | waste of the owner |
|---|---|---|
| complete | its tokens | |
| the request's own size, or its client left | prompt, and the largest of delivered, counted, and what its engine can have made in that time | |
| its time was over, or its money | prompt, delivered | |
| engine refused it, failed or vanished before a token | nothing | what is known of its work |
| the same after a token, and no other engine went on | prompt, delivered | the rest of that |
| retried, moved, resumed | as if it never moved | the second prefill |
| killed gateway | as known, flagged | |
"""  # noqa: E501 - a row of a table

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from tessera.domain.charge.prices import NO_EXTRAS, BilledExtras
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase


class ChargeEnd(Enum):
    """What ended a request, as far as money asks."""

    ANSWER = auto()
    """Its whole answer came."""
    REQUEST = auto()
    """Its own size, or its client that left."""
    TIME = auto()
    """It took too long, or no more money was left for it."""
    FAILURE = auto()
    """An engine, a node or the gateway."""
    KILLED = auto()
    """The gateway was killed: this is what it knew."""


_ENDS: Mapping[str, ChargeEnd] = {
    RequestReason.CLIENT_GONE: ChargeEnd.REQUEST,
    RequestReason.HELD_BYTES_EXCEEDED: ChargeEnd.REQUEST,
    RequestReason.RESPONSE_TOO_LARGE: ChargeEnd.REQUEST,
    RequestReason.BUDGET_EXCEEDED: ChargeEnd.TIME,
    RequestReason.BUDGET_UNAVAILABLE: ChargeEnd.TIME,
    RequestReason.ENGINE_TIMEOUT: ChargeEnd.TIME,
    RequestReason.TARGET_TIMEOUT: ChargeEnd.TIME,
    RequestReason.PROVIDER_TIMEOUT: ChargeEnd.TIME,
    RequestReason.GATEWAY_KILLED: ChargeEnd.KILLED,
}


def charge_end(phase: Phase, reason: str) -> ChargeEnd:
    """Return what ended a request that ended so."""
    if phase is Phase.COMPLETED:
        return ChargeEnd.ANSWER
    return _ENDS.get(reason, ChargeEnd.FAILURE)


class TokenParts(NamedTuple):
    """Tokens by price: `cached` is part of `input`, `reasoning` of `output`."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def at_most(self, most_input: int, most_output: int) -> "TokenParts":
        """Return what of these is possible: the same, if all of it is."""
        if self.cached <= self.input <= most_input and self.reasoning <= self.output <= most_output:
            return self
        input_tokens, output = min(self.input, most_input), min(self.output, most_output)
        return TokenParts(
            input_tokens, min(self.cached, input_tokens), output, min(self.reasoning, output)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWork:
    """What is known of a request that ended, in tokens."""

    engines: int
    """Those that got it: they neither refused it nor were lost before the head of their answer."""
    end: ChargeEnd
    prompt: int
    """About those of the prompt; 0 where none is computed."""
    delivered: int
    """About those of the answer that came."""
    unseen: int
    """Those that its engine can have made beside, in the time until its end."""
    counted: TokenParts | None
    """As its engine says; None where it does not."""
    most_input: int
    """What the prompt can have, by its bytes."""
    most_output: int
    """What the answer may have."""
    most_counted: int
    """What its engine is believed of the answer: of another tenant's, what the bytes allow that
    came."""
    extras: BilledExtras = NO_EXTRAS
    """What a provider counted that only its bill knows."""


class PaidTokens(NamedTuple):
    """What the sender pays."""

    tokens: TokenParts
    flagged: bool
    """An engine said otherwise, or nothing: this is what the gateway knows."""


def paid_tokens(work: KnownWork) -> PaidTokens:
    """Return what a request pays, once, whatever number of engines got it."""
    has_token = work.delivered > 0
    is_free = work.end is ChargeEnd.FAILURE and not has_token
    if not work.engines or is_free:
        return PaidTokens(TokenParts(), flagged=False)
    known = (work.counted or TokenParts()).at_most(work.most_input, work.most_counted)
    if work.end is ChargeEnd.ANSWER and work.counted is not None:
        paid = known.at_most(work.most_input, work.most_output)
        return PaidTokens(paid, flagged=paid != work.counted)
    output = work.delivered
    if work.end is ChargeEnd.REQUEST:
        output = max(output + work.unseen, known.output)
    # `/v1/messages` counts its prompt before the answer.
    paid = TokenParts(known.input or work.prompt, known.cached, output, known.reasoning)
    return PaidTokens(paid.at_most(work.most_input, work.most_output), flagged=True)


def unpaid_tokens(end: ChargeEnd, used: TokenParts, recomputed: int) -> TokenParts:
    """Return what engines computed of which the sender pays a part at most.

    Of an engine that failed that is what was `used` in all, and of those that went on for others
    what they `recomputed`.
    """
    unpaid = used if end is ChargeEnd.FAILURE else TokenParts()
    return unpaid._replace(input=unpaid.input + recomputed)
