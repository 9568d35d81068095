"""Responses of Prometheus become readings; no server runs."""

from collections import Counter

from tessera.adapters.prometheus.metrics import engines_of, loads_of, pods_of
from tessera.adapters.prometheus.queries import SERVICE
from tessera.adapters.prometheus.rows import well_formed_rows
from tessera.domain.observed.snapshot import EngineReading, PodReading, Ref
from tessera.domain.scaling.state import ServiceLoad
from tests.builders import NOW, at


def series(
    pod: str, values: list[tuple[float, str]], service: str | None = "chat"
) -> dict[str, object]:
    labels = {"namespace": "team-a", "pod": pod} | ({SERVICE: service} if service else {})
    return {"metric": labels, "values": values}


def read_loads(
    waiting: list[dict[str, object]],
    activity: list[dict[str, object]],
    running: list[dict[str, object]] | None = None,
) -> dict[Ref, tuple[ServiceLoad, ...]]:
    """Read the answers of three range queries as the adapter does."""
    return loads_of(
        well_formed_rows(waiting, Counter()),
        well_formed_rows(running or [], Counter()),
        well_formed_rows(activity, Counter()),
    )


def test_past_loads_are_summed_over_the_replicas_of_each_moment() -> None:
    start = NOW.timestamp()
    waiting = [
        series("a", [(start, "10"), (start + 5, "20")]),
        series("b", [(start + 5, "5")]),
    ]
    activity = [series("a", [(start, "0.5"), (start + 5, "0.6")], None)]
    running = [series("b", [(start + 5, "8")])]
    ((_, loads),) = read_loads(waiting, activity, running).items()
    assert [(load.waiting, load.running, load.activity, load.ready) for load in loads] == [
        (10, None, 0.5, 1),
        (25, 8, 0.6, 2),
    ]


def test_activity_of_pods_that_serve_no_model_is_left_out() -> None:
    activity = [series("other", [(NOW.timestamp(), "1")], None)]
    assert read_loads([], activity) == {}


def test_a_value_that_is_no_number_is_not_known() -> None:
    start = NOW.timestamp()
    waiting = [series("a", [(start, "3")])]
    activity = [series("a", [(start, "NaN")], None)]
    ((_, (load,)),) = read_loads(waiting, activity).items()
    assert (load.waiting, load.activity) == (3, None)


def now(pod: str, value: float) -> dict[str, object]:
    """Build a row of the response to an instant query."""
    return {"metric": {"namespace": "team-a", "pod": pod}, "value": [NOW.timestamp(), str(value)]}


def test_each_replica_gets_its_own_load_and_none_for_what_is_missing() -> None:
    rows_by_query = {
        "waiting": [now("a", 4), now("b", 0)],
        "running": [now("a", 8)],
        "activity": [],
        "idle": [now("a", 0.01)],
        "cached": [now("a", 70)],
    }
    assert pods_of(rows_by_query) == {
        Ref("team-a", "a"): PodReading(waiting=4, running=8, cached=70, seems_idle=True),
        Ref("team-a", "b"): PodReading(waiting=0),
    }


def test_steps_are_known_with_the_time_at_which_they_were_counted_or_not_at_all() -> None:
    rows_by_query = {
        "steps": [now("a", 123), now("b", 5), now("c", 6)],
        # Prometheus says how old the count is: its clock may be hours off.
        "age": [now("a", 3), now("b", 3)],
        "awake": [now("a", 0)],
    }
    readings = engines_of(rows_by_query, NOW)
    assert readings == {
        Ref("team-a", "a"): EngineReading(steps=123, scraped_at=at(-3), awake=False),
        Ref("team-a", "b"): EngineReading(steps=5, scraped_at=at(-3), awake=None),
    }
