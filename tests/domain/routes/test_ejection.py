"""When a provider is left alone, and for how long."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.routes.ejection import Ejection, ejected_seconds

NEW = Ejection()


def failed(times: int, now: float = 0.0) -> Ejection:
    return reduce(lambda each, _: each.failed(now), range(times), NEW)


def test_three_failures_in_a_row_eject_it() -> None:
    assert failed(2).seconds(0.0) == 0.0
    assert failed(3).seconds(0.0) == 1.0
    assert failed(2).answered(0.0).failed(0.0).seconds(0.0) == 0.0


def test_each_ejection_lasts_twice_as_long_up_to_half_a_minute() -> None:
    ejection, now, pauses = failed(2), 0.0, []
    for _ in range(2000):
        ejection = ejection.asked(now).failed(now)
        pauses.append(ejection.seconds(now))
        now += ejection.seconds(now)
    assert pauses[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert set(pauses[6:]) == {30}


def test_calls_that_fail_during_an_ejection_do_not_prolong_it() -> None:
    ejection = failed(50)
    assert ejection.failed(0.5).seconds(0.5) == 0.5


def test_one_call_tries_it_after_an_ejection_before_others_do() -> None:
    ejection = failed(3)
    assert ejection.seconds(1.0) == 0.0
    tried = ejection.asked(1.0)
    assert tried.seconds(1.0) == 1.0
    assert tried.answered(1.5) == NEW
    # A call that was given up says nothing: the next one tries.
    assert tried.seconds(2.0) == 0.0


def test_the_end_of_a_trial_lets_the_next_call_try_and_that_of_another_call_does_not() -> None:
    tried = failed(3).asked(1.0)
    assert tried.finished(1.0).seconds(1.0) == 0.0
    assert tried.finished(0.5).seconds(1.0) == 1.0
    assert tried.failed(1.0).finished(1.0).seconds(1.0) == 2.0


def test_a_call_from_before_an_ejection_does_not_end_it() -> None:
    ejection = NEW.refused(0.0, 20.0)
    assert ejection.answered(5.0).seconds(5.0) == 15.0


def test_a_refusal_ejects_for_the_time_that_it_asks_for_up_to_a_minute() -> None:
    assert NEW.refused(0.0, 5.0).seconds(0.0) == 5.0
    assert NEW.refused(0.0, 1e9).seconds(0.0) == 60.0


def test_a_short_refusal_ejects_the_second_time() -> None:
    first = NEW.refused(0.0, 2.0)
    assert first.seconds(0.0) == 0.0
    assert first.refused(0.0, 2.0).seconds(0.0) == 2.0
    assert NEW.refused(0.0, 0.0).refused(0.0, 0.0).seconds(0.0) == 1.0


def test_a_later_refusal_prolongs_an_ejection_and_never_shortens_it() -> None:
    ejection = NEW.refused(0.0, 10.0)
    assert ejection.refused(1.0, 30.0).seconds(1.0) == 30.0
    assert ejection.refused(1.0, 3.0).seconds(1.0) == 9.0


moments = st.lists(
    st.tuples(
        st.floats(0, 100), st.sampled_from(["asked", "failed", "refused", "answered"]),
        st.floats(0, 1e12),
    )
)  # fmt: skip


@given(moments)
def test_it_is_never_left_alone_for_more_than_a_minute(
    events: list[tuple[float, str, float]],
) -> None:
    ejection, now = NEW, 0.0
    for passed, event, seconds in events:
        now += passed
        match event:
            case "asked":
                ejection = ejection.asked(now)
            case "failed":
                ejection = ejection.failed(now)
            case "refused":
                ejection = ejection.refused(now, seconds)
            case _:
                ejection = ejection.answered(now)
        assert 0.0 <= ejection.seconds(now) <= 60.0 + 1e-9


def test_what_fails_for_one_tenant_alone_ejects_nothing_for_others() -> None:
    ejections = {"team-a": failed(3)}
    assert ejected_seconds({}, "team-a", 0.0) == 0.0
    assert ejected_seconds(ejections, "team-a", 0.0) == 1.0
    assert ejected_seconds(ejections, None, 0.0) == 1.0
    assert ejected_seconds(ejections, "team-b", 0.0) == 0.0


def test_what_fails_for_two_tenants_is_ejected_for_all_as_long_as_for_both() -> None:
    ejections = {"team-a": NEW.refused(0.0, 30.0), "team-b": failed(3), "team-c": NEW}
    assert ejected_seconds(ejections, "team-c", 0.0) == 1.0
    assert ejected_seconds(ejections, "team-a", 0.0) == 30.0
    assert ejected_seconds(ejections, "team-c", 1.0) == 0.0
