"""Repartitions that are played with and without deaths."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from fakegpu.silicon import Placement
from tests.builders import MEDIUM, SMALL
from tests.repartition.fleet import Backend, World
from tests.repartition.fuse import Point

Gpu = list[Placement]
_WHOLE: Gpu = [("7g.80gb", 0)]
_HALVES: Gpu = [("4g.40gb", 0), ("3g.40gb", 4)]
_SEVEN: Gpu = [("1g.10gb", at) for at in range(7)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A fleet at rest, and what somebody does to it."""

    nodes: Sequence[Sequence[Gpu]]
    begin: Callable[[World], None]
    change: Callable[[World], None]
    roomless: Collection[str] = ()
    """Backends with which there is no room for it, which is said."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How often it was killed, and how many moments these stand for."""

    courses: int = 0
    points: int = 0
    """Moments before and after every write and every NVML call."""
    kills: int = 0
    """Of these, those that leave something different behind."""


async def played(
    course: Course,
    backend: Backend,
    burns: Callable[[Point], bool] = lambda _point: False,
    *,
    away: int = 0,
    seed: int = 0,
) -> World:
    """To its end, with everything that has to hold; who is killed by the fuse is away for so many
    ticks."""
    world = World.of(backend, course.nodes, seed=seed)
    world.away = away
    try:
        course.begin(world)
        await world.settle()
        course.change(world)
        world.fuse.armed, world.fuse.burns = True, burns
        await world.settle()
        world.check("NoSurgeCapacity" if backend.name in course.roomless else "AsPlanned")
    finally:
        await world.close()
    return world


async def killed(course: Course, backend: Backend, *, every: int = 1, first: int = 0) -> Tally:
    """Once without a death, then again for every so many of its points; what fails is named."""
    whole = await played(course, backend)
    points = distinct(whole.fuse.points)
    tally = Tally(courses=1, points=len(whole.fuse.points))
    failures = []
    for point in points[first::every]:
        try:
            world = await played(course, backend, partial(_is, point))
            assert world.deaths == 1
            assert point in world.fuse.points, "it is not played the same again"
        except AssertionError as error:
            failures.append(f"killed {point.moment} {point.number} {point.what}: {error}")
        tally.kills += 1
    assert not failures, f"{len(failures)} of {tally.kills}:\n" + "\n".join(failures[:10])
    return tally


def _is(point: Point, other: Point) -> bool:
    return (other.number, other.moment) == (point.number, point.moment)


def distinct(points: Sequence[Point]) -> list[Point]:
    """One of those that leave the same behind: a process forgets everything else."""
    return list({point.state: point for point in points}.values())


def _three(world: World) -> None:
    world.serve("chat", SMALL, 2)
    world.serve("mail", SMALL, 1)
    world.serve("code", MEDIUM, 1)


def _planned(world: World) -> None:
    world.pool(mode="Auto")
    _three(world)


def _auto(world: World) -> None:
    world.pool(mode="Auto")


def _comes(world: World) -> None:
    world.serve("news", MEDIUM, 2)


def _alone(world: World) -> None:
    world.serve("mail", SMALL, 1, placement={"mig": "Auto", "isolation": "Gpu"})


def _small(world: World) -> None:
    world.pool(mode="Auto")
    world.serve("chat", SMALL, 4)
    world.serve("mail", SMALL, 3)


def _two_alone(world: World) -> None:
    world.serve("news", SMALL, 2, placement={"mig": "Auto", "isolation": "Gpu"})


def _crowd(world: World) -> None:
    world.serve("chat", SMALL, 4)
    world.serve("code", MEDIUM, 3)


COURSES = {
    "GPUs in use are cut": Course(nodes=[[_SEVEN, _SEVEN]] * 2, begin=_small, change=_two_alone),
    "one slice is free": Course(
        nodes=[[_HALVES, _HALVES]] * 2,
        begin=_crowd,
        change=_auto,
        roomless=("mig-manager", "mig-manager, with agents that look"),
    ),
    "every slice is too large": Course(nodes=[[_WHOLE, _WHOLE]] * 3, begin=_three, change=_auto),
    "a service comes": Course(nodes=[[_WHOLE, _WHOLE]] * 2, begin=_planned, change=_comes),
    "a service wants a GPU for itself": Course(
        nodes=[[_WHOLE, _WHOLE]] * 2, begin=_planned, change=_alone
    ),
    "little room": Course(
        nodes=[[_WHOLE, _WHOLE], [_WHOLE, [("3g.40gb", 0), ("3g.40gb", 4)]]],
        begin=_three,
        change=_auto,
        roomless=("mig-manager",),
    ),
}
