"""Each path, whole and as a stream, in each placement."""

from collections.abc import Iterator

from tessera.gateway.paths import PATHS
from tests.gateway.course.building import (
    BUSY,
    FILLERS,
    FIRST,
    SECOND,
    a_course,
    answering,
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
from tests.gateway.course.paths import BODIES, STREAMING, answer_of, rest_of
from tests.gateway.course.play import Course, Happening, Step
from tests.gateway_builders import STEP


def _placed(path: str, placement: str, *, stream: bool) -> Course:
    name = f"{path} {'stream' if stream else 'whole'} {placement}"
    body = streamed(path) if stream else dict(BODIES[path])
    usual = answering(path, stream=stream)
    if placement == "direct":
        return a_course(name, sent(request(path, body)), engines={FIRST: engine(usual)})
    if placement == "queued":
        known = directory(FIRST, replica={"max_num_seqs": 1}, ttft_seconds=5.0)
        engines = {FIRST: engine(BUSY, BUSY, usual)}
        return a_course(name, *FILLERS, sent(request(path, body)), engines=engines, directory=known)
    if placement == "sheddable":
        known = directory(FIRST, replica={"max_num_seqs": 2, "step_time": STEP}, ttft_seconds=5.0)
        asked = request(path, body, x_tessera_sheddable="true")
        return a_course(
            name, *FILLERS, sent(asked), engines={FIRST: engine(BUSY, BUSY, usual)}, directory=known
        )
    if placement == "batch":
        asked = request(path, {**body, "priority": 3})
        known = directory(FIRST, replica={"max_num_seqs": 1, "step_time": STEP}, ttft_seconds=5.0)
        return a_course(
            name, *FILLERS, sent(asked), engines={FIRST: engine(BUSY, BUSY, usual)}, directory=known
        )
    lost = (
        (*streaming(begun(path), end=False), Step(0.0091, "reset"))
        if stream
        else (Step(0.0091, "reset"),)
    )
    going_on = streaming(rest_of(path)) if stream else usual
    if placement == "resumed":
        engines = {FIRST: engine(lost), SECOND: engine(going_on)}
        return a_course(name, sent(request(path, body)), engines=engines)
    assert placement == "moved", placement
    slow = streaming(begun(path, 4), gap=0.9011) if stream else whole(answer_of(path), seconds=4.1)
    before = directory(FIRST, SECOND, moves_streams=True)
    leaving = with_leaving(before, "chat-1")
    return a_course(
        name,
        sent(request(path, body)),
        engines={FIRST: engine(slow), SECOND: engine(going_on)},
        directory=before,
        happenings=(Happening(seconds=1.5017, directory=leaving),),
    )


PLACEMENTS = ("direct", "queued", "resumed", "moved", "sheddable", "batch")


def placements() -> Iterator[Course]:
    for path in PATHS:
        for placement in PLACEMENTS:
            yield _placed(path, placement, stream=False)
            if path in STREAMING:
                yield _placed(path, placement, stream=True)
