"""Gateways that do not know of each other, and direct clients, use all of an engine."""

from tests.gateways_simulation import PLACES, Gateways


def test_two_gateways_under_overload_leave_no_place_free_and_refuse_nothing() -> None:
    fleet = Gateways((26, 26))
    fleet.run(100.0)
    assert [result.refused for result in fleet.results.values()] == [0, 0, 0]
    assert min(fleet.results[name].attained for name in "01") > 0.9
    assert fleet.busy_seconds / 100.0 > PLACES - 1


def test_a_short_spike_of_direct_clients_locks_no_client_of_a_gateway_out() -> None:
    fleet = Gateways((12,), direct=28)
    fleet.run(20.0)
    fleet.add_direct(14, until=23.0)
    fleet.run(100.0)
    assert fleet.results["0"].refused == 0
    assert fleet.results["0"].attained > 0.97


def test_direct_clients_that_wait_in_the_engine_leave_a_gateway_half_of_it() -> None:
    fleet = Gateways((20,), direct=80)
    fleet.run(100.0)
    assert fleet.results["0"].refused == 0
    assert len(fleet.results["0"].ttft) > 100


def test_three_gateways_attain_what_one_does() -> None:
    alone, three = Gateways((57,)), Gateways((19, 19, 19))
    for fleet in (alone, three):
        fleet.run(100.0)
    assert three.attained > alone.attained - 0.02
