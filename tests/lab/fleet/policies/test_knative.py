"""Knative's KPA: the numbers of its defaults (config-autoscaler) and of its scaling rule."""

from tessera_lab.fleet.observation import Observation, Policy, total
from tests.policy_builders import a_policy, an_observation


def seen(at: float, in_flight: int, ready: int, replicas: int | None = None) -> Observation:
    return an_observation(at, [None] * ready, replicas, in_flight=in_flight)


def calm_policy(in_flight: int, ready: int, **changes: float) -> Policy:
    """Return a policy after two minutes of the same load, out of the panic it starts in."""
    policy = a_policy("knative-kpa", **changes)
    for tick in range(60):
        policy.decide(seen(2.0 * tick - 120, in_flight, ready))
    return policy


def test_pods_are_for_70_percent_of_a_concurrency_of_100() -> None:
    policy = calm_policy(350, 5)
    assert policy.decide(seen(0, 350, 5)) == 5
    assert [policy.decide(seen(2.0 + tick * 2, 420, 5)) for tick in range(30)][-1] == 6


def test_twice_the_ready_pods_within_six_seconds_is_panic() -> None:
    policy = calm_policy(350, 5)
    # The panic window has 3 samples: (2 x 350 + 700) / 3, then (350 + 1400) / 3, then 700.
    path = [policy.decide(seen(2.0 * tick, 700, 5)) for tick in range(3)]
    assert path == [6, 6, 10]


def test_panic_ends_a_stable_window_after_the_last_excess() -> None:
    policy = calm_policy(350, 5)
    for tick in range(3):
        policy.decide(seen(2.0 * tick, 700, 5))
    # The excess was last seen at 4 s; all ten are ready from then on.
    path = {at: policy.decide(seen(at, 0, 10)) for at in range(6, 80, 2)}
    assert path[64] == 10
    # The stable window shows nothing by now, and half of the pods is the most that goes at once.
    assert path[66] == 5


def test_pending_pods_do_not_end_a_panic() -> None:
    waiting, ready = calm_policy(350, 5), calm_policy(350, 5)
    for tick in range(60):
        at, load = 2.0 * tick, 700 if tick < 10 else 1_400
        pending = waiting.decide(seen(at, load, 5, replicas=10))
        settled = ready.decide(seen(at, load, 10))
    # 20 of 5 ready pods is a panic that keeps all; 20 of 10 is one, too, and asks for no more.
    assert (pending, settled) == (20, 20)
    for tick in range(60, 120):
        pending = waiting.decide(seen(2.0 * tick, 700, 5, replicas=20))
        settled = ready.decide(seen(2.0 * tick, 700, 20))
    assert (pending, settled) == (20, 10)


def test_a_scaler_that_starts_beside_pods_starts_in_panic() -> None:
    policy = a_policy("knative-kpa")
    assert [policy.decide(seen(at, 0, 8)) for at in (0, 60, 62)] == [8, 8, 4]


def test_a_delay_keeps_the_most_of_its_seconds() -> None:
    policy = calm_policy(350, 5, scale_down_delay=300.0)
    for tick in range(150):
        desired = total(policy.decide(seen(2.0 * tick, 0, 5)))
    assert desired > 2
    assert policy.decide(seen(420, 0, 5)) == 2
