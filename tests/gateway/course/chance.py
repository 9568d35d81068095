"""Courses by chance: what the systematic ones meet alone, together."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.gateway.paths import PATHS
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.course.building import (
    FILLERS,
    FIRST,
    SECOND,
    THIRD,
    a_course,
    directory,
    engine,
    request,
    sent,
    streamed,
    streaming,
    whole,
    with_leaving,
)
from tests.gateway.course.failures import FAILURES, failing, stream_events, whole_events
from tests.gateway.course.paths import BODIES, STREAMING, answer_of, rest_of, stream_of
from tests.gateway.course.play import Course, Happening, PlayedEngine, Script, Step
from tests.gateway.harness import MODEL, USAGE, an_api_key, event
from tests.gateway_builders import STEP

_COURSES = 100
_CHOICES = ("/v1/chat/completions", "/v1/completions")
_HEADERS: tuple[Mapping[str, str], ...] = (
    {},
    {},
    {"x_tessera_sheddable": "true"},
    {"x_tessera_tags": "team=a,run=7"},
    {"traceparent": f"00-{'1' * 31}a-{'2' * 15}b-01", "tracestate": "a=b"},
    {"x_session_id": "s-1"},
)


class _Chance:
    """One course, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.random = random.Random(f"course {number}")  # noqa: S311 - a course is its number
        chosen = self.random
        self.path = chosen.choice((*STREAMING, *_CHOICES, *_CHOICES, *_CHOICES, *list(PATHS)[4::3]))
        self.stream = self.path in STREAMING and chosen.random() < 0.75

    def seconds(self, least: float, most: float) -> float:
        """Return a span in whole microseconds, which no other one equals."""
        return round(self.random.uniform(least, most), 6)

    def body(self) -> dict[str, Any]:
        chosen = self.random
        body = streamed(self.path) if self.stream else dict(BODIES[self.path])
        if self.path in _CHOICES:
            if self.stream and chosen.random() < 0.5:
                body["stream_options"] = {"include_usage": chosen.random() < 0.8}
            if chosen.random() < 0.2:
                body["n"] = chosen.randint(1, 3)
        if self.path in STREAMING and chosen.random() < 0.3:
            body["temperature"] = chosen.choice((0, 0.4, 1.0))
        is_computed = self.path not in ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
        if is_computed and chosen.random() < 0.2:
            body["priority"] = chosen.choice((-3, 2))
        if self.path == "/v1/chat/completions" and chosen.random() < 0.4:
            texts = ["a tile " * chosen.choice((1, 400, 900)) for _ in range(chosen.randint(1, 3))]
            body["messages"] = [{"role": "user", "content": text} for text in texts]
        return body

    def usage(self) -> bytes:
        """Return the event in which an engine says what a request used."""
        chosen = self.random
        prompt, answer = chosen.choice((3, 7, 30)), chosen.choice((3, 5, 400))
        drafts = chosen.randint(1, 9)
        speculation = {
            "num_spec_steps": drafts,
            "num_draft_tokens": 4 * drafts,
            "num_accepted_draft_tokens": drafts,
        }
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": chosen.choice((0, 2, prompt))},
            "completion_tokens_details": {"reasoning_tokens": chosen.choice((0, 1))},
        }
        said = {"id": "chatcmpl-0", "model": MODEL, "choices": [], "usage": usage}
        if chosen.random() < 0.5:
            said["metrics"] = {"speculative_decoding": speculation}
        return event(said)

    def events(self, *, resumed: bool) -> list[bytes]:
        before, words, after = stream_of(self.path)
        events = rest_of(self.path) if resumed else [*before, *words, *after]
        usage = self.usage()
        return [usage if each == USAGE else each for each in events]

    def answer(self, *, first: bool) -> Script:
        """Return what an engine does: often what it should."""
        chosen = self.random
        fails = chosen.random() < (0.65 if first else 0.25)
        if fails and chosen.random() < 0.15:
            return whole({"error": {"message": "no", "code": 400}}, chosen.choice((400, 429, 500)))
        if fails:
            events = stream_events(self.path) if self.stream else whole_events(self.path)
            done = list(events.values())
            # A stream that began is what may go on elsewhere.
            places = done[4:9] if self.stream and chosen.random() < 0.6 else done
            return failing(chosen.choice(places), chosen.choice((*FAILURES, "reset", "close")))
        gap = self.seconds(0.002, 0.09)
        if self.stream:
            return streaming(self.events(resumed=not first), gap)
        return whole(answer_of(self.path), seconds=gap)

    def engines(self, count: int) -> dict[str, PlayedEngine]:
        chosen, engines = self.random, {}
        for address in (FIRST, SECOND, THIRD)[:count]:
            answers = [self.answer(first=address == FIRST) for _ in range(chosen.randint(1, 3))]
            connects = "refused" if chosen.random() < 0.08 else "at once"
            tokenizes = None
            if chosen.random() < 0.15:
                tokenizes = whole({"count": 5, "tokens": [1]}, chosen.choice((200, 404)))
            engines[address] = engine(
                *answers,
                connects=connects,
                tokenizes=tokenizes,
                prompt_tokens=chosen.randint(2, 8),
                begun_tokens=chosen.randint(8, 16),
            )
        return engines

    def client(self) -> Script:
        chosen = self.random
        credential = chosen.choice((None, None, "team-a.b.c"))
        options: dict[str, Any] = dict(chosen.choice(_HEADERS))
        if credential is not None:
            options["key"] = credential
        asked = request(self.path, self.body(), **options)
        then: tuple[Step, ...] = ()
        if chosen.random() < 0.3:
            then = (Step(self.seconds(0.01, 0.9), chosen.choice(("close", "reset"))),)
        elif chosen.random() < 0.2:
            then = (
                Step(0.0, "stop reading"),
                Step(self.seconds(0.2, 2.0), "read", size=300),
                Step(self.seconds(0.2, 2.0), "read on"),
            )
        if chosen.random() < 0.2:
            cut = chosen.randrange(60, len(asked))
            later = Step(self.seconds(0.01, 0.4), "send", asked[cut:])
            return sent(asked[:cut], later, *then, seconds=self.seconds(0.006, 0.02))
        return sent(asked, *then, seconds=self.seconds(0.006, 0.02))

    def course(self) -> Course:
        chosen = self.random
        engines = self.engines(chosen.choice((1, 2, 2, 3, 3)))
        replica: dict[str, Any] = {
            "max_num_seqs": chosen.choice((1, 1, 4, 64)),
            "step_time": chosen.choice((None, STEP)),
            "max_model_len": chosen.choice((None, 4096)),
            "variant": chosen.choice(("", "spot")),
            "price_version": chosen.choice((None, "a100@0123456789ab")),
        }
        limits = RateLimitsSpec()
        if chosen.random() < 0.3:
            limits = RateLimitsSpec(
                requests=PeriodLimits(per_minute=chosen.choice((2, 50))),
                total_tokens=PeriodLimits(per_minute=chosen.choice((60, 9000))),
                concurrent_requests=chosen.choice((None, 2, 8)),
                max_output_tokens=chosen.choice((None, 8)),
            )
        known = directory(
            *engines,
            replica=replica,
            keys=(an_api_key(limits=limits, team=chosen.choice((None, "blue"))),),
            moves_streams=chosen.random() < 0.6,
            public=chosen.random() < 0.2,
            max_model_len=replica["max_model_len"],
            ttft_seconds=chosen.choice((0.05, 1.0, 5.0)),
            itl_seconds=chosen.choice((0.01, 0.033)),
            limits=RateLimitsSpec(requests=PeriodLimits(per_second=chosen.choice((None, 20)))),
        )
        before = FILLERS if chosen.random() < 0.4 else ()
        return a_course(
            f"chance {self.number}, {self.path} {'stream' if self.stream else 'whole'}",
            *before,
            self.client(),
            engines=engines,
            directory=known,
            happenings=tuple(self.happenings(known)),
            bounds=BodyBounds(heartbeat_seconds=chosen.choice((0.3, 10.0))),
            idle_seconds=chosen.choice((5.0, 30.0)),
        )

    def happenings(self, known: Any) -> Iterator[Happening]:
        chosen, seconds = self.random, self.seconds(0.03, 0.8)
        kind = chosen.choice(("", "", "leaving", "removed", "revoked", "ends"))
        if kind == "leaving":
            yield Happening(seconds=seconds, directory=with_leaving(known, "chat-1"))
        elif kind == "removed":
            (model,) = known.models
            stay = tuple(each for each in model.replicas if each.pod.name != "chat-1")
            changed = replace(known, models=(replace(model, replicas=stay),))
            yield Happening(seconds=seconds, directory=changed)
        elif kind == "revoked":
            yield Happening(seconds=seconds, directory=replace(known, keys={}))
        elif kind == "ends":
            yield Happening(seconds=seconds, drains=True, cancels=True)


def by_chance() -> Iterator[Course]:
    """Return the courses, which are the same each time."""
    for number in range(1, _COURSES + 1):
        yield _Chance(number).course()
