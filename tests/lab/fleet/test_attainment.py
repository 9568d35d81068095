"""What a run must attain, and how it is scored."""

from collections.abc import Sequence

from tessera_lab.fleet.attainment import AttainmentGoal, attainment_goal


def served(window: int, in_time: int, late: int) -> Sequence[tuple[float, float | None]]:
    return [(300.0 * window, 1.0)] * in_time + [(300.0 * window, 1.001)] * late


def test_a_request_without_a_first_token_is_not_in_time() -> None:
    score = AttainmentGoal().score([(0.0, 0.5), (1.0, None)])
    assert (score.requests, score.in_time, score.share) == (2, 1, 0.5)
    assert not score.sufficient


def test_the_exact_share_suffices_and_one_request_less_does_not() -> None:
    attainment = AttainmentGoal(window_share=0.0)
    assert attainment.score(served(0, in_time=57, late=3)).sufficient
    assert not attainment.score(served(0, in_time=56, late=4)).sufficient


def test_whole_windows_cannot_be_given_up_where_the_overall_share_would_allow_it() -> None:
    late = {0: 10, 1: 10, 2: 10}
    run = [r for w in range(40) for r in served(w, 100 - late.get(w, 0), late.get(w, 0))]
    score = AttainmentGoal().score(run)
    assert (score.windows, score.windows_in_time) == (40, 37)
    assert score.share > 0.99
    assert not score.sufficient
    assert AttainmentGoal(window_share=0.90).score(run).sufficient


def test_windows_without_requests_are_not_counted() -> None:
    score = AttainmentGoal().score([(0.0, 0.1), (3000.0, 0.1)])
    assert (score.windows, score.windows_in_time) == (2, 2)


def test_a_short_trace_is_scored_from_the_first_ready_replica_on() -> None:
    short, day = attainment_goal(3600, 110), attainment_goal(86400, 110)
    early = [(109.0, 5.0), (110.0, 0.5)]
    assert short.score(early).requests == 1
    assert short.score(early).sufficient
    assert not day.score(early).sufficient
    assert (short.window_share, day.window_share) == (0.90, 0.95)


def test_a_run_without_requests_attains_all() -> None:
    score = AttainmentGoal().score([])
    assert (score.share, score.window_share, score.sufficient) == (1.0, 1.0, True)
