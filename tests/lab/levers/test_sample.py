"""Traces as the load of a replica."""

from array import array
from dataclasses import replace

import pytest

from tessera_lab.fleet.trace import Trace
from tessera_lab.levers.sample import WINDOW, load_sample, sampled, window_rates


def trace(clients: list[int] | None = None, prefixes: list[tuple[int, ...]] | None = None) -> Trace:
    count = 1000
    return Trace(
        name="test",
        seconds=250.0,
        arrivals=array("d", (number / 4 for number in range(count))),
        input_tokens=array("i", [600] * count),
        output_tokens=array("i", [20] * count),
        clients=None if clients is None else array("i", clients),
        prefixes=None if prefixes is None else tuple(prefixes),
    )


def test_a_short_trace_is_its_own_sample() -> None:
    short = trace()
    assert sampled(short, 1000, seed=1) is short


def test_a_sample_has_whole_clients_at_the_rate_of_the_trace() -> None:
    part = sampled(trace([number % 50 for number in range(1000)]), 300, seed=1)
    assert len(part) == 300
    assert part.seconds == pytest.approx(75)
    assert part.clients is not None
    assert {part.clients.count(client) for client in set(part.clients)} == {20}
    assert list(part.arrivals) == sorted(part.arrivals)
    assert sampled(trace([number % 50 for number in range(1000)]), 300, seed=1) == part


def test_a_system_prompt_that_all_share_makes_no_session() -> None:
    # Sessions of 5 requests, each with one prefix more.
    prefixes = [
        (0, *range(1 + 10 * (number // 5), 2 + 10 * (number // 5) + number % 5))
        for number in range(1000)
    ]
    part = sampled(trace(prefixes=prefixes), 100, seed=3)
    assert part.prefixes is not None
    sessions = [each[1] for each in part.prefixes]
    assert len(part) == 100
    assert {sessions.count(session) for session in sessions} == {5}


def test_a_client_longer_than_the_sample_is_taken_only_if_there_is_no_other() -> None:
    assert len(sampled(trace([0] * 1000), 100, seed=1)) == 1000
    clients = [0] * 950 + [1] * 50
    assert set(sampled(trace(clients), 100, seed=1).clients or ()) == {1}


def test_windows_of_other_rates_get_the_same_rate_and_keep_their_bursts() -> None:
    quiet = [number * 3.0 for number in range(100)]
    busy = [WINDOW + number * 0.5 for number in range(600)]
    uneven = Trace(
        name="uneven",
        seconds=2 * WINDOW,
        arrivals=array("d", quiet + busy),
        input_tokens=array("i", [10] * 700),
        output_tokens=array("i", [10] * 700),
    )
    load = load_sample(uneven)
    assert load.rate == pytest.approx(700 / 600)
    gaps = [
        after.at - before.at
        for before, after in zip(load.requests, load.requests[1:], strict=False)
    ]
    assert max(gaps) == pytest.approx(min(gaps))
    assert window_rates(uneven) == ((WINDOW, 100 / WINDOW), (WINDOW, 600 / WINDOW))


def test_the_last_window_is_as_long_as_the_trace() -> None:
    short = replace(trace(), seconds=450.0)
    assert window_rates(short) == ((300.0, 1000 / 300), (150.0, 0.0))
