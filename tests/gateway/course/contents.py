"""What prompts and answers say: prompts that engines have, drafts, calls of tools, contexts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.gateway.course.building import (
    CHAT_PATH,
    FIRST,
    SECOND,
    a_course,
    begun,
    directory,
    engine,
    request,
    sent,
    streamed,
    streaming,
    whole,
    with_leaving,
)
from tests.gateway.course.paths import BODIES, answer_of, rest_of, stream_of
from tests.gateway.course.play import Course, Happening, Script, Step
from tests.gateway.harness import COMPLETION, MODEL, a_delta, event
from tests.gateway_builders import STEP

_CHAT = BODIES[CHAT_PATH]
_ASKED = request(CHAT_PATH, _CHAT)
_METRICS = {
    "speculative_decoding": {
        "num_spec_steps": 2,
        "num_draft_tokens": 8,
        "num_accepted_draft_tokens": 1,
    }
}


def _used(prompt: int, cached: int, **others: Any) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": 3,
        "total_tokens": prompt + 3,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {**COMPLETION, "usage": usage, **others}


def _prompts() -> Iterator[Course]:
    """Prompts that begin alike: where they go, and what of them the engine had."""
    texts = ["a tile of many " * 400, "another tile of many " * 300]
    # In turn: the first prompt, another one, and three that begin as the first did.
    asked = [texts[0], texts[1], texts[0] + "x", texts[0] + "y" * 2000, texts[0]]
    clients = [
        sent(
            request(
                CHAT_PATH,
                {**_CHAT, "messages": [{"role": "user", "content": text}]},
                x_request_id=f"r-{number}",
                x_session_id="s-1" if number == 1 else "",
            ),
            seconds=0.0113 + 0.4007 * number,
        )
        for number, text in enumerate(asked)
    ]
    for name, replica in (("", {}), (" of known speed", {"step_time": STEP, "max_num_seqs": 8})):
        for cached in (0, 1024, 1500):
            answers = engine(whole(_used(1600, cached)))
            yield a_course(
                f"prompts that begin alike{name}, {cached} tokens cached",
                *clients,
                engines={FIRST: answers, SECOND: answers},
                directory=directory(FIRST, SECOND, replica=replica, max_model_len=4096),
            )


def _drafts() -> Iterator[Course]:
    yield a_course(
        "drafts of an answer",
        sent(_ASKED),
        engines={FIRST: engine(whole(_used(7, 2, metrics=_METRICS)))},
    )
    said = {**_used(7, 2), "id": "chatcmpl-0", "model": MODEL, "choices": [], "metrics": _METRICS}
    before, words, after = stream_of(CHAT_PATH)
    events = [*before, *words, after[0], event(said), after[-1]]
    lost = (*streaming(begun(CHAT_PATH), end=False), Step(0.0091, "reset"))
    for temperature in (0, 0.7):
        asked = request(CHAT_PATH, streamed(CHAT_PATH, temperature=temperature))
        yield a_course(
            f"drafts of a stream at {temperature}",
            sent(asked),
            engines={FIRST: engine(streaming(events))},
        )
        yield a_course(
            f"drafts of a stream that goes on at {temperature}",
            sent(asked),
            engines={FIRST: engine(lost), SECOND: engine(streaming(events))},
        )


def _unprotected() -> Iterator[Course]:
    """Streams that cannot go on elsewhere, from their beginning or from some event on."""
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}
    called = event({"id": "chatcmpl-0", "choices": [{"index": 0, "delta": call}]})
    thought = event(
        {"id": "chatcmpl-0", "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}
    )
    before, words, after = stream_of(CHAT_PATH)
    going_on = engine(streaming(rest_of(CHAT_PATH)))
    asked = sent(request(CHAT_PATH, streamed(CHAT_PATH)))

    def losing(*events: bytes) -> Script:
        return (*streaming([*before, *events], end=False), Step(0.0091, "reset"))

    for name, events in (
        ("calls a tool", (words[0], words[1], called)),
        ("begins with thoughts", (thought, words[0])),
        ("says very much", (words[0], *[a_delta(" x" * 60_000)] * 20)),
    ):
        yield a_course(
            f"a lost stream that {name}",
            asked,
            engines={FIRST: engine(losing(*events)), SECOND: going_on},
        )
    yield a_course(
        "a stream that calls a tool",
        asked,
        engines={FIRST: engine(streaming([*before, *words, called, *after]))},
    )
    two = sent(request(CHAT_PATH, streamed(CHAT_PATH, n=2)))
    yield a_course(
        "a lost stream of two choices",
        two,
        engines={FIRST: engine(losing(*words[:2])), SECOND: going_on},
    )
    # Without room for its protection, and with nobody who goes on.
    yield a_course(
        "a lost stream without memory",
        asked,
        engines={FIRST: engine(losing(*words[:2])), SECOND: going_on},
        held_bytes=600,
    )


def _unequal() -> Iterator[Course]:
    """Replicas that differ, and those that leave where nobody takes their streams."""
    known = directory(FIRST, SECOND, max_model_len=4096)
    (model,) = known.models
    lengths = {"chat-1": 64, "chat-2": 4096}
    unequal = tuple(
        replace(each, max_model_len=lengths[each.pod.name], max_num_seqs=4)
        for each in model.replicas
    )
    mixed = replace(known, models=(replace(model, replicas=unequal),))
    refusal = {"error": {"message": "too long", "code": 400}}
    for name, body in (("a short prompt", _CHAT), ("a long prompt", {**_CHAT, "max_tokens": 900})):
        for status in (400, 500):
            engines = {
                FIRST: engine(whole(refusal, status)),
                SECOND: engine(whole(answer_of(CHAT_PATH))),
            }
            yield a_course(
                f"{name} at unequal replicas, {status}",
                sent(request(CHAT_PATH, body)),
                engines=engines,
                directory=mixed,
            )
    slow = streaming(begun(CHAT_PATH, 4), gap=0.9011)
    asked = request(CHAT_PATH, streamed(CHAT_PATH))
    for name, engine_names, moves in (
        ("that stays", ("", ""), False),
        ("of another engine", ("a", "b"), True),
    ):
        others = tuple(
            replace(each, engine=kind)
            for each, kind in zip(model.replicas, engine_names, strict=True)
        )
        before = replace(known, models=(replace(model, replicas=others, moves_streams=moves),))
        yield a_course(
            f"a stream {name} at a replica that leaves",
            sent(asked),
            engines={FIRST: engine(slow), SECOND: engine(streaming(rest_of(CHAT_PATH)))},
            directory=before,
            happenings=(Happening(seconds=1.5017, directory=with_leaving(before, "chat-1")),),
        )
    shared = directory(FIRST, SECOND, public=True)
    for number, answer in enumerate((whole(b"no", 500), (Step(0.01, "reset"),), whole(b"{"))):
        again = [sent(_ASKED, seconds=0.0113 + 0.2003 * turn) for turn in range(6)]
        yield a_course(
            f"engines that fail again and again, {number}",
            *again,
            engines={FIRST: engine(answer), SECOND: engine(whole(answer_of(CHAT_PATH)))},
            directory=shared,
        )


def _memory() -> Iterator[Course]:
    """A stream that is not read, and others who need the memory that it takes."""
    large = streaming([*begun(CHAT_PATH), *[a_delta(" x" * 20_000)] * 12], end=False)
    unread = sent(request(CHAT_PATH, streamed(CHAT_PATH)), Step(0.0, "stop reading"), seconds=0.0)
    body = {**_CHAT, "user": "x" * 200_000}
    other = sent(request(CHAT_PATH, body, x_request_id="other"), seconds=0.9007)
    yield a_course(
        "the memory of a stream that is not read",
        unread,
        other,
        engines={FIRST: engine(large), SECOND: engine(whole(answer_of(CHAT_PATH)))},
        held_bytes=700_000,
    )


def _lengths() -> Iterator[Course]:
    """A client that asks so often that its lengths are known."""
    yield a_course(
        "a client that asks often",
        tuple(Step(0.1007, "send", _ASKED) for _ in range(23)),
        engines={FIRST: engine(whole(_used(9, 4)))},
    )


def contents() -> Iterator[Course]:
    """Return the courses of what is said."""
    yield from _prompts()
    yield from _drafts()
    yield from _unprotected()
    yield from _unequal()
    yield from _memory()
    yield from _lengths()
