"""Plays an attack on a path, and says what of it should not be."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.gateway.paths import PATHS
from tests.gateway.harness import TENANT, Answer
from tests.hostile.paths import (
    ADDRESS,
    BODY,
    COUNTS_TOKENS,
    HONEST,
    MAX_OUTPUT_TOKENS,
    PATIENCE_SECONDS,
    PROMPT_TOKENS,
    SERVICE,
    Attack,
    Scene,
    Stage,
    honest,
    soon,
)


async def play(
    stage: Stage, attack: Attack, *, stream: bool = True, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Play an attack, and return what should not be.

    What the request had may be held for `patience` seconds after it.
    """
    scene = stage.scene = Scene(
        stage=stage, attack=attack, request_id=f"scene-{next(stage.numbers)}", stream=stream
    )
    stage.renew()
    held_bytes = stage.gateway.held_bytes
    beside = asyncio.create_task(stage.hear())
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await (stage.path.run or Scene.send)(scene)
        heard = await beside
    scene.freed.set()

    def is_over() -> bool:
        return (
            len(stage.records_of(scene)) >= attack.requests
            and stage.gateway.held_bytes <= held_bytes
            and SERVICE not in stage.gateway.admission.demand
            and not stage.gateway.queued_requests
        )

    problems = [] if await soon(is_over, patience) else ["something of the request stays"]
    problems += _problems(scene, answer, stage.records_of(scene))
    problems += _gateway_problems(scene)
    if heard != b"heard":
        problems.append(f"the bystander got {heard!r}")
    if not attack.rest:
        return problems
    # What an engine sent beyond its answer is the answer of no other request.
    stage.scene = Scene(stage=stage, attack=Attack(), request_id="next", stream=False)
    stage.scene.had_first = True
    stage.renew()
    following = await stage.post({**BODY, "stream": False}, "next")
    if (following.status, _content(following.body)) != (200, HONEST):
        problems.append(f"the next request got {following.status}: {following.body!r}")
    return problems


def _gateway_problems(scene: Scene) -> Iterator[str]:
    """Return what is wrong with the gateway."""
    stage = scene.stage
    model = next(
        each for each in stage.gateway.admission.senders.directory.models if each.tenant == TENANT
    )
    now = time.monotonic()
    for state in stage.gateway.admission.replicas.states(model):
        if sum(state.load(now)):
            yield f"{state.replica.pod.name} has a request: {state.load(now)}"
    for record in stage.logged:
        if record.exc_info or "Traceback" in record.getMessage():
            yield f"logged: {record.getMessage()}, {record.exc_info}"
    stage.logged.clear()
    if not scene.reached and scene.attack.reaches:
        yield "the request did not reach the engine"


def _problems(scene: Scene, answer: Answer | None, records: Sequence[UsageRecord]) -> Iterator[str]:
    attack = scene.attack
    if len(records) != attack.requests:
        yield f"{len(records)} records"
    decoder = PATHS["/v1/chat/completions"].decoder
    body = json.dumps(scene.body).encode()
    size = decoder.decode(body).prompt_size(body)
    # Of a template, which the body does not have, an engine may count some tokens more.
    most = size.bound(None) if attack.lies else max(size.estimate(None), PROMPT_TOKENS) * 3 // 2
    for record in records:
        if not 0 <= record.input_tokens <= most:
            yield f"{record.input_tokens} tokens of a prompt, of at most {most}"
        if not 0 <= record.output_tokens <= MAX_OUTPUT_TOKENS:
            yield f"{record.output_tokens} tokens of an answer, of {MAX_OUTPUT_TOKENS}"
        if record.status == 200 and (record.tenant, record.client_address) != (TENANT, ADDRESS):
            yield f"{record.tenant} sent it from {record.client_address}"
        if record.phase is not Phase.COMPLETED and record.reason not in set(RequestReason):
            yield f"the reason {record.reason}"
        if answer is not None and attack.requests == 1 and record.status != answer.status:
            yield f"{record.status} is recorded of {answer.status}"
    if answer is not None:
        yield from _answer_problems(scene, answer, records)


def _answer_problems(scene: Scene, answer: Answer, records: Sequence[UsageRecord]) -> Iterator[str]:
    if scene.attack.status not in (None, answer.status):
        yield f"the status {answer.status}: {answer.body[:300]!r}"
    if b"set-cookie" in str(dict(answer.headers)).lower().encode():
        yield "the client got a header of the engine"
    if answer.status != 200:
        error = json.loads(answer.body)["error"]
        is_own = all(each.reason != RequestReason.ENGINE_REFUSED for each in records)
        names = {"message", "type", "param", "code"} if is_own else {"message"}
        if not isinstance(error["message"], str) or not names <= error.keys():
            yield f"the error {error}"
        return
    if scene.stream:
        yield from _stream_problems(scene, answer, records)


def _stream_problems(scene: Scene, answer: Answer, records: Sequence[UsageRecord]) -> Iterator[str]:
    *events, rest = (each.strip(b"\n") for each in answer.body.split(b"\n\n"))
    if rest:
        yield f"a part of an event: {rest[:100]!r}"
    events = list(filter(None, events))
    ends = [number for number, each in enumerate(events, 1) if _is_end(each)]
    if ends != [len(events)]:
        yield f"ends {ends} of {len(events)} events: {events[-1][:100]!r}"
    text, most = _text(events), scene.path.first_text + scene.attack.text
    if not most.startswith(text):
        yield f"the text {text[:100]!r}"
    if text and not all(each.input_tokens and each.output_tokens for each in records):
        yield "what was delivered is not charged"
    if scene.attack.answer is honest and scene.attack.counts is COUNTS_TOKENS and text != most:
        yield f"only the text {text[:100]!r}"


def _is_end(event: bytes) -> bool:
    return event == b"data: [DONE]" or event.startswith(b'data: {"error"')


def _text(events: Sequence[bytes]) -> str:
    return "".join(map(_text_of, events))


def _text_of(event: bytes) -> str:
    """Return the text of an event; nothing of what is none."""
    try:
        choices = json.loads(event.removeprefix(b"data:"))["choices"]
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""


def _content(body: bytes) -> Any:
    try:
        return json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
