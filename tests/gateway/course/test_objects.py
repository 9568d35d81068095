"""How many objects of the product live for each request that runs."""

import gc
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from typing_extensions import override

from tests.gateway.course.building import (
    CHAT_PATH,
    FIRST,
    a_course,
    begun,
    engine,
    request,
    sent,
    streamed,
    streaming,
)
from tests.gateway.course.paths import BODIES
from tests.gateway.course.play import Play, Script

_REQUESTS = 10
# Of a request that an engine has, whose answer did not begin, and of a stream that runs; without
# what the collector does not know: what has no references to others.
_MOST_WAITING, _MOST_RUNNING = 25, 27


class _Counting(Play):
    """Counts the objects of the product while all its requests run."""

    objects: Counter[str]

    @override
    def read(self, why: str) -> None:
        super().read(why)
        if why == "page" and self.readings[-1]["at"] > 400_000 and not hasattr(self, "objects"):
            assert self.readings[-1]["count"] == len(self.course.clients)
            self.objects = Counter(
                f"{type(each).__module__}.{type(each).__qualname__}"
                for each in gc.get_objects()
                if str(type(each).__module__).startswith("tessera.")
            )


def _objects_of_each(body: Mapping[str, Any], answer: Script) -> Mapping[str, float]:
    """Return the objects that one more request has."""
    counted = []
    for requests in (1, 1 + _REQUESTS):
        clients = [sent(request(CHAT_PATH, body)) for _ in range(requests)]
        play = _Counting(a_course("alike", *clients, engines={FIRST: engine(answer)}))
        # The gateway keeps no such record; the player would.
        play.app.note_begun = lambda _: None
        gc.collect()
        play.run()
        counted.append(play.objects)
    few, many = counted
    return {name: (many[name] - few[name]) / _REQUESTS for name in many if many[name] > few[name]}


@pytest.mark.parametrize(
    ("body", "answer", "most"),
    [
        pytest.param(BODIES[CHAT_PATH], (), _MOST_WAITING, id="waiting"),
        pytest.param(
            streamed(CHAT_PATH),
            streaming(begun(CHAT_PATH), end=False),
            _MOST_RUNNING,
            id="streaming",
        ),
    ],
)
def test_a_request_has_no_more_objects(body: Mapping[str, Any], answer: Script, most: int) -> None:
    objects = _objects_of_each(body, answer)
    assert sum(objects.values()) <= most, objects
