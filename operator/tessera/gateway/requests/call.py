"""One request on its way: admitted, sent to an engine, perhaps to another one, and recorded."""

import asyncio
import itertools
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.gateway.access import cache_salt
from tessera.domain.gateway.directory import Identity, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import (
    Phase,
    RequestPriority,
    RunningPhase,
    RunningRequest,
    StreamLatency,
    UsageRecord,
)
from tessera.domain.model.routes import TOKENIZER_ROUTES
from tessera.domain.observed.drafts import DraftCounts
from tessera.domain.picking.prediction import RequestMeans, seconds_per_token
from tessera.gateway.bodies.continuation import may_continue
from tessera.gateway.bodies.media import check_media
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.bodies.parsing import (
    RequestFields,
    RequestSummary,
    body_for_engine,
    parse_with_unlisted,
)
from tessera.gateway.bodies.prompt_size import LARGEST_CONTEXT, PromptSize
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.fleet.replicas import SentRequest
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.http.responses import ClientResponse
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.refusals import RequestError, route_not_served, unlisted_field
from tessera.gateway.relay.engine_errors import EngineError
from tessera.gateway.requests.admission import Admission, Ticket
from tessera.gateway.requests.attempts import Attempts
from tessera.gateway.requests.relay import Delivery, EngineRelay, UpstreamRequest
from tessera.gateway.resolve.shapes import likely_tokens, prompt_blocks, request_shape
from tessera.gateway.routes import Route

# As W3C has it; anything else begins a new trace.
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_STATE = re.compile(rb"[\x20-\x7e]{1,512}")
_MAX_ROUTE = 256
# Of a known prefix: its tokens are a mean of those of its bytes.
_UNCERTAIN_SHARE = 1 / 8
# Of a client that is gone, and of a defect of the gateway.
_CLIENT_GONE, _DEFECT = 499, 500
# Unique among all gateways and restarts.
_PROCESS_ID = uuid.uuid4().hex[:16]
_numbers = itertools.count()


@dataclass(slots=True, kw_only=True)
class Inbound:
    """A request as it came, and who sent it."""

    route: Route
    holding: Holding
    turns: Turns
    """Those of all large bodies."""
    body: bytes = b""
    """Empty before it came, and once an engine gets it."""
    query: bytes
    headers: Mapping[bytes, bytes]
    identity: Identity
    request_id: str
    client_address: str
    tags: str
    sheddable: bool = False
    """The client says so; its key may as well."""
    started_ns: int
    """Monotonic."""
    started_at_ns: int
    """Unix time."""

    @property
    def trace_parent(self) -> bytes:
        """Return the span of which the request is a child; empty without any."""
        given = self.headers.get(b"traceparent", b"")
        return given if _TRACE_PARENT.fullmatch(given) else b""


class Call:
    """One request from its admission to its record."""

    def __init__(
        self,
        inbound: Inbound,
        admission: Admission,
        engines: EngineSession,
        response: ClientResponse,
        record: Callable[[UsageRecord, Sequence[SentRequest]], None],
        note_begun: Callable[[UsageRecord], None],
    ) -> None:
        self._note_begun = note_begun
        self._inbound = inbound
        self._holding = inbound.holding
        self._admission = admission
        self._engines = engines
        self._response = response
        self._record = record
        self._fields: RequestFields | RequestSummary | None = None
        self._size: PromptSize | None = None
        self._model: OfferedModel | None = None
        self._ticket: Ticket | None = None
        self._delivery = Delivery()
        self.attempts: Attempts | None = None
        """Those of its request, while it is at engines."""
        self._record_id = _record_id()
        self._client_gone = False
        # What it used, once no engine works for it.
        self._counts: TokenCounts | None = None
        self._estimated = False

    async def run(self, heartbeat_seconds: float) -> None:
        """Answer the request; whatever happens, it is recorded."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._response.client.on_gone = lambda: self._leave(task)
        phase, reason = Phase.FAILED, str(RequestReason.INTERNAL_ERROR)
        try:
            await self._answer(heartbeat_seconds)
            phase, reason = Phase.COMPLETED, ""
        except EngineError as error:
            phase, reason = Phase.FAILED, error.reason
            await self._fail(error)
        except RequestError as error:
            phase, reason = self._phase_of_refusal, error.reason
            await self._fail(error)
        except asyncio.CancelledError:
            task.uncancel()
            if self._holding.exceeded:
                phase, reason = self._phase_of_refusal, RequestReason.HELD_BYTES_EXCEEDED
                await self._fail(self._holding.error())
            elif not self._client_gone:
                phase, reason = Phase.ABORTED, RequestReason.GATEWAY_DRAINING
                await self._fail(RequestError(RequestReason.GATEWAY_DRAINING))
            elif self._delivery.is_complete:
                # Clients that have read the end of a stream close at once.
                phase, reason = Phase.COMPLETED, ""
            else:
                phase, reason = Phase.ABORTED, RequestReason.CLIENT_GONE
        finally:
            # They refer to this call.
            self.attempts = None
            self._response.client.on_gone = None
            self._response.stop_heartbeats()
            self._settle(phase, reason)

    @property
    def started_ns(self) -> int:
        """Return when it came, on the monotonic clock."""
        return self._inbound.started_ns

    @property
    def awaited_model(self) -> OfferedModel | None:
        """Return the model of a stream that waits for its first token; None for any other."""
        if self._fields is None or not self._fields.streams:
            return None
        return self._model if self._delivery.first_token_ns is None else None

    def running(self, now_ns: int) -> RunningRequest:
        """Return where it is now."""
        inbound, model, ticket = self._inbound, self._model, self._ticket
        fields = self._fields
        if ticket is not None and fields is not None and fields.streams:
            decodes = self._delivery.first_token_ns is not None
            phase = RunningPhase.DECODE if decodes else RunningPhase.PREFILL
        elif ticket is not None:
            phase = RunningPhase.RUNNING
        elif model is not None and not self._admission.replicas.ready_count(model):
            phase = RunningPhase.HELD
        else:
            phase = RunningPhase.QUEUED
        return RunningRequest(
            request_id=inbound.request_id,
            tenant=inbound.identity.tenant,
            key=inbound.identity.key,
            service=str(model.service) if model else "",
            model=fields.model if fields else "",
            replica=ticket.sent.choice.replica.pod.name if ticket and ticket.sent else None,
            phase=phase,
            age_seconds=round((now_ns - inbound.started_ns) / 1e9, 3),
            output_tokens=self._delivery.deltas,
        )

    @property
    def _phase_of_refusal(self) -> Phase:
        """Return how a request ends that is refused: what an engine did until then is paid."""
        return Phase.REFUSED if self._delivery.sent_ns is None else Phase.ABORTED

    async def _fail(self, error: RequestError) -> None:
        """Send an error, unless the client does not even read what it has."""
        client = self._response.client
        client.on_gone = None
        if self._holding.exceeded and client.reads_slowly:
            client.abort()
        else:
            await self._response.fail(error)

    def _leave(self, task: asyncio.Task[None]) -> None:
        """Cancel the request, since its client is gone."""
        self._client_gone = True
        task.cancel()

    async def _answer(self, heartbeat_seconds: float) -> None:
        request, ticket = await self._admitted(heartbeat_seconds)
        inbound = self._inbound
        relay = EngineRelay(
            self._engines,
            request,
            self._response,
            self._delivery,
            self._holding,
            lambda: self._end_work(Phase.COMPLETED),
        )
        self.attempts = Attempts(
            relay,
            self._admission,
            ticket,
            inbound.turns,
            confirm=lambda: self._admission.confirm(
                inbound.headers, inbound.client_address, ticket
            ),
            suspect=inbound.identity.tenant if ticket.model.is_shared else None,
        )
        await self.attempts.run()

    async def _admitted(self, heartbeat_seconds: float) -> tuple[UpstreamRequest, Ticket]:
        """Return what an engine gets, once there is room for it.

        Nothing of the body as it came is kept.
        """
        inbound, body_bytes = self._inbound, len(self._inbound.body)
        identity, route, turns = inbound.identity, inbound.route, inbound.turns
        fields, unlisted = await turns.take(
            body_bytes, lambda: parse_with_unlisted(route.decoder, route.listed, inbound.body)
        )
        self._fields = fields
        model = self._model = self._admission.find_model(identity, fields.model)
        if model.routes and route.path not in (*model.routes, *TOKENIZER_ROUTES):
            raise route_not_served(fields.model, route.path, model)
        if model.is_shared and unlisted is not None:
            raise unlisted_field(unlisted)
        if fields.streams:
            self._response.start_heartbeats(heartbeat_seconds)
        size = await turns.take(body_bytes, lambda: fields.prompt_size(inbound.body))
        if size.media_tokens:
            await turns.take(body_bytes, lambda: check_media(fields.media, model))
        self._size = size
        means = self._admission.replicas.means(model)
        prompt_tokens = likely_tokens(size.estimate(model.max_model_len), size, means)
        sender, headers = (identity.tenant, self._admission.weight_of(identity)), inbound.headers
        prompt = await turns.take(
            body_bytes, lambda: prompt_blocks(fields, headers, model, sender, prompt_tokens)
        )
        shape = request_shape(fields, size, model, means, prompt, _priority(inbound, fields))
        ticket = self._ticket = await self._admission.admit(identity, model, shape)
        self._delivery.itl_target_ns = round(model.itl_seconds * 1e9)
        most = ticket.max_output_tokens
        served_name = fields.model if shape.adapter else model.names[0]
        most_of_choice = None if most is None else most // fields.choices
        salt = cache_salt(model, identity.tenant)
        summary = fields.summary()
        request = UpstreamRequest(
            route=route,
            fields=summary,
            body=await turns.take(
                body_bytes,
                lambda: body_for_engine(
                    inbound.body,
                    fields,
                    served_name,
                    most_of_choice,
                    salt,
                    yields=shape.priority.yields,
                ),
            ),
            query=inbound.query,
            headers=_engine_headers(inbound, model, self._record_id),
            may_continue=may_continue(fields, unlisted, body_bytes),
        )
        if (record := self.partial_record()) is not None:
            self._note_begun(record)
        self._fields, inbound.body = summary, b""
        return request, ticket

    def _settle(self, phase: Phase, reason: str) -> None:
        counts = self._end_work(phase)
        attempts = self._ticket.attempts if self._ticket is not None else ()
        self._record(self._usage(phase, reason, counts, estimated=self._estimated), attempts)

    def _end_work(self, phase: Phase) -> TokenCounts:
        """Settle what was used and free its place, once: a client may go on reading after that."""
        if self._counts is not None:
            return self._counts
        ticket = self._ticket
        reported = self._delivery.counts
        if reported is None or ticket is None:
            counts, estimated = self._delivered(phase), ticket is not None
        else:
            counts = reported.at_most(*self._most(ticket))
            estimated = counts is not reported or self._delivery.unchecked_joints > 0
            if phase is Phase.COMPLETED:
                self._learn(counts, estimated=estimated)
            elif (output := self._delivered(phase).output) > counts.output:
                # `/v1/messages` reports before the answer what it has then.
                counts, estimated = replace(counts, output=output), True
        if ticket is not None:
            if ticket.sent is not None and self._delivery.first_token_ns is not None:
                is_reported = phase is Phase.COMPLETED and counts.input > 0 and not estimated
                # The replica that goes on with a stream does not know what the first one had.
                is_reported = is_reported and not self._delivery.resumed
                cached_share = counts.cached / counts.input if is_reported else None
                prompt_tokens = counts.input if is_reported else None
                ticket.sent.answered(counts.output, cached_share, prompt_tokens)
            self._admission.finish(ticket, input_tokens=counts.input, output_tokens=counts.output)
        self._counts, self._estimated = counts, estimated
        return counts

    def _learn(self, counts: TokenCounts, *, estimated: bool) -> None:
        if self._model is not None and self._size is not None and not estimated:
            self._admission.replicas.learn(
                self._model, counts.input, counts.output, self._size.text_bytes
            )
            if self._ticket is not None:
                self._admission.arrivals.learn(
                    self._inbound.identity,
                    self._model,
                    self._ticket.shape,
                    input_tokens=counts.input,
                    output_tokens=counts.output,
                )

    def _most(self, ticket: Ticket) -> tuple[int, int]:
        """Return the most tokens that the request can have of input and of output.

        Counts are settled against the limits of its sender, who need not own the engine.
        """
        fields, size, context = self._fields, self._size, ticket.model.max_model_len
        assert fields is not None and size is not None  # noqa: PT018, S101 - it is admitted
        if fields.output_tokens is None and context is None:
            most_output = LARGEST_CONTEXT * fields.choices
        elif self._inbound.route.stream is not None:
            # Engines make a token even of `max_tokens: 0`.
            most_output = max(ticket.admitted.max_output_tokens, fields.choices)
        else:
            most_output = 0
        return size.bound(context), most_output

    def partial_record(self) -> UsageRecord | None:
        """Return its record as if the gateway were killed now; None before an engine has it."""
        if self._ticket is None or self._ticket.sent is None:
            return None
        counts, estimated = self._counts, self._estimated
        if counts is None:
            counts, estimated = self._delivered(Phase.ABORTED), True
        reason = RequestReason.GATEWAY_KILLED
        return self._usage(Phase.ABORTED, reason, counts, estimated=estimated)

    def _delivered(self, phase: Phase) -> TokenCounts:
        """Return what a request used whose engine reported nothing.

        A client that leaves pays the prompt that an engine got, the tokens that it was sent, and
        those that its engine makes until it hears of it: not all that it may have asked for.
        """
        ticket, fields, size, model = self._ticket, self._fields, self._size, self._model
        if ticket is None or fields is None or size is None or model is None:
            return TokenCounts()
        output = self._delivery.tokens
        means = self._admission.replicas.means(model)
        if phase is Phase.ABORTED and self._delivery.sent_ns is not None:
            output = min(
                output + self._unread(ticket, means) * fields.choices, self._most(ticket)[1]
            )
        elif not output:
            return TokenCounts()
        input_tokens = likely_tokens(ticket.shape.input_tokens, size, means)
        return TokenCounts(input=input_tokens, output=output)

    def _unread(self, ticket: Ticket, means: RequestMeans) -> int:
        """Return the tokens of a choice that its engine made and the gateway did not read."""
        delivery, sent = self._delivery, ticket.sent
        now = self._admission.clock.monotonic()
        if sent is None or delivery.sent_ns is None or self._counts is not None:
            return 0
        if delivery.is_resuming:
            return 0
        if delivery.first_token_ns is not None:
            began = delivery.read_ns / 1e9
        elif delivery.prefilled_ns is not None:
            # The tokens of its reasoning may be hidden.
            began = delivery.prefilled_ns / 1e9
        elif ticket.shape.stream:
            return 0
        else:
            # An answer that is no stream shows nothing before its end.
            began = delivery.sent_ns / 1e9 + (sent.choice.predicted_ttft_seconds or 0.0)
        pace = seconds_per_token(sent.choice.state, means, now) or ticket.model.itl_seconds
        # The token under way is made as well.
        return int((now - began) / pace) + 1 if now >= began else 0

    def _usage(
        self, phase: Phase, reason: str, counts: TokenCounts, *, estimated: bool
    ) -> UsageRecord:
        fields, model, ticket, inbound = self._fields, self._model, self._ticket, self._inbound
        sent = ticket.sent if ticket else None
        choice = sent.choice if sent else None
        predicted_share = sent.predicted_cached_share if sent else 0.0
        uncached = 0
        if sent is not None and not estimated:
            known = sent.known_prefix_share * counts.input
            uncached = round(known) - counts.cached
            if uncached <= _UNCERTAIN_SHARE * known:
                uncached = 0
        first_token_ns = self._delivery.first_token_ns
        identity = inbound.identity
        return UsageRecord(
            record_id=self._record_id,
            request_id=inbound.request_id,
            started_at_ns=inbound.started_at_ns,
            tenant=identity.tenant,
            team=identity.team,
            user=identity.user,
            key=identity.key,
            service=str(model.service) if model else "",
            model=fields.model if fields else "",
            variant=choice.replica.variant if choice else None,
            replica=choice.replica.pod.name if choice else None,
            price_version=choice.replica.price_version if choice else None,
            route=inbound.route.path,
            phase=phase,
            status=self._response.status or (_DEFECT if phase is Phase.FAILED else _CLIENT_GONE),
            reason=reason or (choice.reason if choice else ""),
            stream=fields is not None and fields.streams,
            input_tokens=counts.input,
            cached_tokens=counts.cached,
            predicted_cached_tokens=round(predicted_share * counts.input),
            uncached_prefix_tokens=uncached,
            output_tokens=counts.output,
            reasoning_tokens=counts.reasoning,
            estimated=estimated,
            queue_ns=ticket.queue_ns if ticket else 0,
            ttft_ns=None if first_token_ns is None else first_token_ns - inbound.started_ns,
            total_ns=self._admission.clock.monotonic_ns() - inbound.started_ns,
            tags=inbound.tags,
            trace_parent=inbound.trace_parent.decode(),
            client_address=inbound.client_address,
            resumed=self._delivery.resumed,
            unchecked_joints=self._delivery.unchecked_joints,
            latency=self._latency(),
            drafts=_drafts_of(self._delivery, self._fields, counts.output),
        )

    def _latency(self) -> StreamLatency | None:
        fields, model, delivery = self._fields, self._model, self._delivery
        # Without its size a request has prompts that cannot be counted.
        if fields is None or model is None or self._size is None or not fields.streams:
            return None
        # Tokens of several choices come between each other.
        is_single = fields.choices == 1
        return StreamLatency(
            ttft_target_ns=round(model.ttft_seconds * 1e9),
            itl_target_ns=round(model.itl_seconds * 1e9),
            gaps=delivery.gaps if is_single else 0,
            late_gaps=delivery.late_gaps if is_single else 0,
        )


def _drafts_of(
    delivery: Delivery, fields: RequestFields | RequestSummary | None, output_tokens: int
) -> DraftCounts | None:
    if fields is None or delivery.drafts is None:
        return None
    drafts = delivery.drafts.at_most(output_tokens)
    return replace(drafts, temperature=fields.temperature_class)


def refused_record(
    request_id: str,
    route: str,
    client_address: str,
    error: RequestError,
    started_at_ns: int,
    total_ns: int,
) -> UsageRecord:
    """Return the record of a request that was refused before its model was known."""
    sender = error.sender
    return UsageRecord(
        record_id=_record_id(),
        request_id=request_id,
        started_at_ns=started_at_ns,
        tenant=sender.tenant if sender else "",
        team=sender.team if sender else None,
        key=sender.key if sender else None,
        route=route[:_MAX_ROUTE],
        phase=Phase.REFUSED,
        status=error.status,
        reason=error.reason,
        total_ns=total_ns,
        client_address=client_address,
    )


def _record_id() -> str:
    return f"{_PROCESS_ID}-{next(_numbers)}"


def _engine_headers(inbound: Inbound, model: OfferedModel, record_id: str) -> bytes:
    """Return all headers that an engine gets; nothing else of the client's passes."""
    # No tenant gives a request the name of one of another.
    suffix = f"-{record_id}" if model.is_shared else ""
    name = f"{inbound.request_id}{suffix}".encode()
    lines = b"Content-Type: application/json\r\nX-Request-Id: %b\r\n" % name
    if parent := inbound.trace_parent:
        lines += b"traceparent: %b\r\n" % parent
        state = inbound.headers.get(b"tracestate", b"")
        if _TRACE_STATE.fullmatch(state):
            lines += b"tracestate: %b\r\n" % state
    return lines


def _priority(inbound: Inbound, fields: RequestFields) -> RequestPriority:
    if inbound.sheddable or inbound.identity.sheddable:
        return RequestPriority.SHEDDABLE
    return RequestPriority.BATCH if fields.yields else RequestPriority.DEFAULT
