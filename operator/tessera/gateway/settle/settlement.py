"""What a request used: at its engine's end tokens, place and limits, at its client's a record."""

import itertools
import uuid
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from tessera.adapters.clock import Clock
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.picking.prediction import RequestMeans, seconds_per_token
from tessera.domain.usage.charge import EngineWork, WorkEnd, charge, work_end
from tessera.domain.usage.payer import (
    ChargeEnd,
    TokenParts,
    charge_end,
    paid_tokens,
    unpaid_tokens,
)
from tessera.gateway.bodies.prompt_size import LARGEST_CONTEXT
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.identify.senders import Identified, RecordFields
from tessera.gateway.outside.source import AskedOutside
from tessera.gateway.queue.places import Placed, Places
from tessera.gateway.receive.receiver import Received
from tessera.gateway.refusals import RequestError
from tessera.gateway.relay.paid import known_work
from tessera.gateway.relay.sent import Sent
from tessera.gateway.reserve.charges import RequestCharge
from tessera.gateway.reserve.limits import Reservations, Reserved
from tessera.gateway.resolve.chooser import Chosen
from tessera.gateway.resolve.models import Resolved
from tessera.gateway.resolve.shapes import likely_tokens
from tessera.gateway.settle.outside import end_outside, killed_outside

_MAX_PATH = 256
# Of a known prefix: its tokens are a mean of those of its bytes.
_UNCERTAIN_SHARE = 1 / 8
# Before a response: of a client that is gone, of an answer that is sent now, and of a defect.
_CLIENT_GONE = 499
_STATUSES = {Phase.COMPLETED: 200, Phase.FAILED: 500}
# Of this process in the store, unique among all gateways and restarts: records begin with it.
GATEWAY_NAME = uuid.uuid4().hex[:16]
_numbers = itertools.count()
_NO_TOKENS = TokenCounts()


@dataclass(slots=True, kw_only=True)
class Answered:
    """A request for which no engine works any more; its client may read on."""

    sent: Sent | AskedOutside
    counts: TokenCounts
    estimated: bool
    recomputed: int
    """Tokens that engines computed again, which no tenant pays."""
    charged: RecordFields = field(default_factory=dict)
    """What is recorded of a charge that may grow; that of a request that ended is settled."""

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        sent, counts = self.sent, self.counts
        fields = sent.record_fields()
        fields["input_tokens"], fields["output_tokens"] = counts.input, counts.output
        fields["cached_tokens"], fields["reasoning_tokens"] = counts.cached, counts.reasoning
        fields["recomputed_tokens"] = self.recomputed
        fields["estimated"] = self.estimated
        fields |= self.charged
        if isinstance(sent, AskedOutside):
            return fields
        at = sent.placed.at
        fields["predicted_cached_tokens"] = round(at.predicted_cached_share * counts.input)
        if not self.estimated:
            known = at.known_prefix_share * counts.input
            uncached = round(known) - counts.cached
            fields["uncached_prefix_tokens"] = (
                uncached if uncached > _UNCERTAIN_SHARE * known else 0
            )
        if sent.drafts is not None:
            fields["drafts"] = replace(
                sent.drafts.at_most(counts.output), temperature=sent.fields.temperature_class
            )
        return fields


# Where a request stands: the value of the last station that it passed.
Stand: TypeAlias = (
    Identified | Received | Resolved | Chosen | Reserved | Placed | Sent | AskedOutside | Answered
)


class ClientEnd(NamedTuple):
    """How a request ended for its client."""

    phase: Phase
    reason: str
    """Empty of one that was answered."""
    status: int | None
    """None where the client got no response."""


class Settlement:
    """Settles requests at their ends, each once."""

    def __init__(self, reservations: Reservations, places: Places, clock: Clock) -> None:
        self._reservations, self._places, self._clock = reservations, places, clock

    def end_engine(self, at: Stand, phase: Phase, reason: str = "") -> Stand:
        """Settle what was used and free its place; return where the request stands then.

        A client may go on reading after that. The reason is empty of what is answered.
        """
        match at:
            case Reserved():
                self._reservations.settle(at, input_tokens=0, output_tokens=0)
                return at.chosen
            case Placed():
                self._leave(at, _NO_TOKENS)
                return at
            case Sent():
                end = work_end(phase, reason)
                answered = self._answered(at, end)
                if phase is Phase.COMPLETED and not answered.estimated:
                    self._learn(at, answered.counts)
                if at.first_token_ns is not None:
                    self._note_answer(at, answered, phase)
                counts = answered.counts
                if at.reserved.charge is not None:
                    self._charge(at, answered, at.reserved.charge, phase, reason)
                self._leave(at.placed, counts, goes_on=end is WorkEnd.REQUEST)
                return answered
            case AskedOutside():
                now_ns, how = self._clock.monotonic_ns(), charge_end(phase, reason)
                counts, estimated = end_outside(at, how, self._reservations, now_ns)
                return Answered(sent=at, counts=counts, estimated=estimated, recomputed=0)
            case _:
                return at

    def record(
        self, at: Stand, end: ClientEnd, record_id: str, identified: Identified
    ) -> UsageRecord:
        """Return the record of a request that ended where it stands."""
        fields = at.record_fields()
        # That of its replica is why it went there.
        fields["reason"] = end.reason or fields.get("reason", "")
        return UsageRecord(
            record_id=record_id,
            phase=end.phase,
            status=end.status or _STATUSES.get(end.phase, _CLIENT_GONE),
            total_ns=self._clock.monotonic_ns() - identified.started_ns,
            **fields,
        )

    def partial(self, at: Sent | AskedOutside | Answered) -> Answered:
        """Return what a request that a source has used so far."""
        if isinstance(at, Answered):
            return at
        if isinstance(at, AskedOutside):
            counts, charged = killed_outside(at)
            return Answered(sent=at, counts=counts, estimated=True, recomputed=0, charged=charged)
        answered, charge = self._answered(at, WorkEnd.FAILURE), at.reserved.charge
        if charge is not None:
            work = known_work(at, charge, ChargeEnd.KILLED) if at.engines else None
            answered.charged = charge.record_fields(work)
        return answered

    def _charge(
        self, sent: Sent, answered: Answered, charge: RequestCharge, phase: Phase, reason: str
    ) -> None:
        """Say what a request is charged, which its reservation is settled by."""
        end, unseen = charge_end(phase, reason), 0
        if end is ChargeEnd.REQUEST:
            unseen = self._unseen(sent, self._places.replicas.means(sent.reserved.model))
        work, charges = known_work(sent, charge, end, unseen), self._reservations.charges
        charge.charge, is_estimate = charges.price(charge, work)
        answered.estimated |= is_estimate
        if answered.recomputed or end is ChargeEnd.FAILURE:
            counts = answered.counts
            used = TokenParts(counts.input, counts.cached, counts.output, counts.reasoning)
            charge.note_waste(unpaid_tokens(end, used, answered.recomputed), end)
        if is_estimate and end is not ChargeEnd.FAILURE:
            # The record has the tokens that its charge is for.
            answered.counts = TokenCounts(**paid_tokens(work).tokens._asdict())
        if phase is Phase.COMPLETED and sent.counts is not None:
            # What an engine claims beyond that is no length of answers.
            output = min(sent.counts.output, work.most_counted, work.most_output)
            charges.learn(sent.reserved.model, output // charge.choices)

    def _leave(self, placed: Placed, counts: TokenCounts, *, goes_on: bool = False) -> None:
        self._places.leave(placed, goes_on=goes_on)
        self._reservations.settle(
            placed.reserved, input_tokens=counts.input, output_tokens=counts.output
        )

    def _answered(self, sent: Sent, end: WorkEnd) -> Answered:
        """Return what was used, within what could be."""
        reserved, reported = sent.reserved, sent.counts
        if not sent.engines and reported is None:
            return Answered(sent=sent, counts=_NO_TOKENS, estimated=True, recomputed=0)
        means, prompt = self._places.replicas.means(reserved.model), 0
        if sent.fields.computes:
            prompt = likely_tokens(reserved.shape.input_tokens, reserved.chosen.size, means)
        most_input, most_output = _most(sent)
        charged = charge(
            EngineWork(
                engines=sent.engines,
                end=end,
                prompt=prompt,
                delivered=sent.tokens,
                repeated=sent.repeated_tokens,
                unseen=self._unseen(sent, means) if end is WorkEnd.REQUEST else 0,
                counted=None if reported is None else (reported.input, reported.output),
                most_input=most_input,
                most_output=most_output,
            )
        )
        # Parts of the prompt and the answer as an engine says.
        counts = (reported or _NO_TOKENS).at_most(charged.input, charged.output)
        if (counts.input, counts.output) != (charged.input, charged.output):
            counts = replace(counts, input=charged.input, output=charged.output)
        return Answered(
            sent=sent,
            counts=counts,
            estimated=(counts is not reported and counts != reported) or sent.unchecked_joints > 0,
            recomputed=charged.recomputed,
        )

    def _note_answer(self, sent: Sent, answered: Answered, phase: Phase) -> None:
        """Record what the replica has of the request now."""
        counts = answered.counts
        is_reported = phase is Phase.COMPLETED and counts.input > 0 and not answered.estimated
        # The replica that goes on with a stream does not know what the first one had.
        is_reported = is_reported and not sent.resumed
        cached_share = counts.cached / counts.input if is_reported else None
        prompt_tokens = counts.input if is_reported else None
        sent.placed.at.answered(counts.output, cached_share, prompt_tokens)

    def _learn(self, sent: Sent, counts: TokenCounts) -> None:
        model, reserved = sent.reserved.model, sent.reserved
        size, identity = reserved.chosen.size, sent.identified.identity
        self._places.replicas.learn(model, counts.input, counts.output, size.text_bytes)
        self._places.arrivals.learn(
            identity,
            model,
            reserved.shape,
            input_tokens=counts.input,
            output_tokens=counts.output,
        )

    def _unseen(self, sent: Sent, means: RequestMeans) -> int:
        """Return the tokens that its engine can have made and the gateway did not read."""
        placed, now = sent.placed, self._clock.monotonic()
        thinks_on = sent.is_resuming and sent.events is not None and sent.events.prefilled
        if sent.sent_ns is None or (sent.is_resuming and not thinks_on):
            return 0
        if sent.first_token_ns is not None and not thinks_on:
            began = sent.read_ns / 1e9
        elif sent.prefilled_ns is not None:
            # The tokens of its reasoning may be hidden.
            began = sent.prefilled_ns / 1e9
        elif placed.reserved.shape.stream:
            return 0
        else:
            # An answer that is no stream shows nothing before its end.
            began = sent.sent_ns / 1e9 + (placed.at.choice.predicted_ttft_seconds or 0.0)
        state = placed.at.choice.state
        pace = seconds_per_token(state, means, now) or placed.model.itl_seconds
        # The token under way is made as well.
        steps = int((now - began) / pace) + 1 if now >= began else 0
        return int(steps * min(sent.fields.choices, state.max_sequences))


def _most(sent: Sent) -> tuple[int, int]:
    """Return the most tokens that the request can have of input and of output.

    Counts are settled against the limits of its sender, who need not own the engine.
    """
    reserved, fields = sent.reserved, sent.fields
    context = reserved.model.max_model_len
    if fields.output_tokens is None and context is None:
        most_output = LARGEST_CONTEXT * fields.choices
    elif sent.identified.path_item.stream is not None:
        # Engines make a token even of `max_tokens: 0`.
        most_output = max(reserved.admitted.max_output_tokens, fields.choices)
    else:
        most_output = 0
    return reserved.chosen.size.bound(context), most_output


def refused_record(
    request_id: str,
    path: str,
    client_address: str,
    error: RequestError,
    started_at_ns: int,
    total_ns: int,
) -> UsageRecord:
    """Return the record of a request that was refused before its body was read."""
    sender = error.sender
    return UsageRecord(
        record_id=record_id(),
        request_id=request_id,
        started_at_ns=started_at_ns,
        tenant=sender.tenant if sender else "",
        team=sender.team if sender else None,
        key=sender.key if sender else None,
        path=path[:_MAX_PATH],
        phase=Phase.REFUSED,
        status=error.status,
        reason=error.reason,
        total_ns=total_ns,
        client_address=client_address,
    )


def record_id() -> str:
    """Return a name for a record that no other one has."""
    return f"{GATEWAY_NAME}-{next(_numbers)}"
