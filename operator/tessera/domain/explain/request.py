"""Where a request went, and why: what the gateway compared when it sent it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import AliasChoices, Field

from tessera.api.meta import Wire
from tessera.api.text import counted
from tessera.domain.gateway.usage_record import Phase
from tessera.domain.picking.pick import CandidateReplica, Choice, Comparison, Exclusion, PickReason


class ComparedReplica(Wire):
    """One replica of the service, at the moment when the request was sent."""

    replica: str
    cached_tokens: int | None
    """Those of the prompt that it had, by the gateway's record; None where engines keep nothing."""
    cached_share: float | None
    predicted_ttft_seconds: float | None
    """None while the speed of a replica is unknown, and where it was not compared."""
    score: float | None
    """What decides: the least is chosen. Seconds, and requests relative to `maxNumSeqs` while the
    speed of a replica is unknown."""
    excluded: Exclusion | None
    """Why it was not compared."""


class AttemptExplanation(Wire):
    """Why a request was sent to one replica."""

    replica: str
    reason: PickReason
    message: str
    failure: str | None
    """Why another replica got it then."""
    replicas: tuple[ComparedReplica, ...]


class RequestExplanation(Wire):
    """A request that was sent to an engine, and ended."""

    request_id: str
    tenant: str
    key: str | None
    service: str
    provider: str = ""
    """ModelProvider and model, in place of a service."""
    model: str
    path: Annotated[str, Field(validation_alias=AliasChoices("path", "route"))]
    """`route` is what gateways of 0.1 call it, which may run beside this one."""
    started_at: datetime
    attempts: tuple[AttemptExplanation, ...]
    phase: Phase
    status: int
    reason: str
    queue_seconds: float
    ttft_seconds: float | None
    total_seconds: float
    input_tokens: int
    cached_tokens: int
    """Part of the input, as the engine reported."""
    predicted_cached_tokens: int
    uncached_prefix_tokens: int
    """Those that a replica of the service had, and the engine computed again."""
    output_tokens: int
    estimated: bool
    """Tokens were counted by the gateway, since the engine reported none."""
    model_route: str = ""
    """ModelRoute that it came to, as namespace/name; empty without, as are the next three."""
    target: str = ""
    """Target of the route that was asked; of several calls each is listed."""
    target_reason: str = ""
    skipped_targets: str = ""
    """Targets that gave no answer before, as `name=reason` pairs joined by commas."""


class RequestExplanations(Wire):
    """The requests with one id that a gateway knows, and which ones it keeps."""

    requests: tuple[RequestExplanation, ...]
    """The newest first; clients choose ids and may repeat them."""
    kept_requests: int
    """Those of all ids."""
    kept_since: datetime | None
    """When the first one of them came; None without any."""


class JoinedExplanations(RequestExplanations):
    """The same of several gateways."""

    silent_gateways: tuple[str, ...] = ()
    """Pods that were asked as well, and gave no answer."""


def join_explanations(
    answers: Sequence[RequestExplanations], silent_gateways: Sequence[str]
) -> JoinedExplanations:
    """Return what several gateways know, beside those that gave no answer."""
    requests = [request for answer in answers for request in answer.requests]
    requests.sort(key=lambda request: request.started_at, reverse=True)
    since = [answer.kept_since for answer in answers if answer.kept_since is not None]
    return JoinedExplanations(
        requests=tuple(requests),
        kept_requests=sum(answer.kept_requests for answer in answers),
        kept_since=min(since, default=None),
        silent_gateways=tuple(silent_gateways),
    )


def explain_attempt(
    choice: Choice, comparison: Comparison, tried: Sequence[str] = (), failure: str = ""
) -> AttemptExplanation:
    """Return why a replica was chosen.

    `tried` are UIDs of replicas that had the request before.
    """
    candidates = {id(candidate.state): candidate for candidate in choice.candidates}
    excluded = {
        id(state): Exclusion.TRIED if state.replica.uid in tried else exclusion
        for state, exclusion in comparison.exclusions
    }
    held_tokens, prompt_tokens = comparison.held_tokens, comparison.prompt_tokens
    compared = []
    for index, state in enumerate(comparison.replicas):
        candidate = candidates.get(id(state))
        cached = held_tokens[index] if held_tokens else None
        compared.append(
            ComparedReplica(
                replica=state.replica.pod.name,
                cached_tokens=cached,
                cached_share=None if cached is None else round(cached / prompt_tokens, 4),
                predicted_ttft_seconds=_rounded(candidate.ttft if candidate else None),
                score=_rounded(candidate.score if candidate else None),
                excluded=excluded.get(id(state)),
            )
        )
    name = choice.replica.pod.name
    compared.sort(
        key=lambda each: (each.score is None, each.score or 0.0, each.replica != name, each.replica)
    )
    return AttemptExplanation(
        replica=name,
        reason=choice.reason,
        message=_message(choice, comparison),
        failure=failure or None,
        replicas=tuple(compared),
    )


def _message(choice: Choice, comparison: Comparison) -> str:
    name = choice.replica.pod.name
    others = [each for each in choice.candidates if each.state is not choice.state]
    if not others:
        return f"{name} was the only replica that could get the request."
    second = min(others, key=lambda each: each.score)
    other = second.state.replica.pod.name
    if choice.reason is PickReason.LEAST_IN_FLIGHT:
        return (
            f"{name} had the fewest requests relative to its maxNumSeqs, before {other}: the speed "
            "of a replica is unknown."
        )
    if choice.reason is PickReason.CONVERSATION_OWNER:
        return (
            f"{name} owns this conversation: other gateways expect it there, so that later turns "
            f"find it in the cache. Else {other} would have got it."
        )
    if choice.reason is PickReason.CACHED_PREFIX:
        if not any(comparison.held_tokens):
            return f"{name} had the last prompt of its session; else {other} would have got it."
        tokens_by_state = {
            id(state): tokens
            for state, tokens in zip(comparison.replicas, comparison.held_tokens, strict=True)
        }
        cached = counted(tokens_by_state[id(choice.state)], "token")
        return (
            f"{name} had {cached} of the prompt cached, and {other} "
            f"{tokens_by_state[id(second.state)]}; else {other} would have got it."
        )
    return _timing(choice, second)


def _timing(choice: Choice, second: CandidateReplica) -> str:
    """Return what was predicted of the chosen replica and the next best."""
    name, other = choice.replica.pod.name, second.state.replica.pod.name
    seconds, other_seconds = choice.predicted_ttft_seconds or 0.0, second.ttft or 0.0
    first_token = f"{name} would give the first token after {seconds * 1000:.0f} ms"
    if seconds <= other_seconds:
        return f"{first_token}, and {other}, the next best, after {other_seconds * 1000:.0f} ms."
    # What others wait for this request counts, too, and how long a replica has been ready.
    return (
        f"{first_token}; {other} would after {other_seconds * 1000:.0f} ms, but keep others "
        "waiting for longer, or it was ready only just."
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
