"""Shares of workers in the places of a model."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.limits.worker_shares import WorkerShare, worker_shares

counts = st.dictionaries(st.sampled_from(["team-a", "team-b", "team-c"]), st.integers(0, 50))


def places(shares: Mapping[int, WorkerShare]) -> dict[int, float]:
    return {worker: share.places for worker, share in shares.items()}


def test_a_worker_with_more_requests_of_one_tenant_has_more_places() -> None:
    shares = worker_shares({1: {"team-a": 9}, 2: {"team-a": 3}}, {})
    assert places(shares) == {1: 0.75, 2: 0.25}
    assert shares[1].tenants == {"team-a": 0.75}


def test_requests_beyond_a_tenants_share_bring_its_worker_no_more_places() -> None:
    for greedy in (10, 100):
        requests = {1: {"greedy": greedy}, 2: {"modest": 5}}
        assert places(worker_shares(requests, {})) == {1: 0.5, 2: 0.5}


def test_tenants_share_by_their_weights() -> None:
    requests = {1: {"team-a": 4}, 2: {"team-b": 4}}
    assert places(worker_shares(requests, {"team-a": 3.0})) == {1: 0.75, 2: 0.25}


@given(st.dictionaries(st.integers(0, 4), counts, min_size=1))
def test_shares_add_up_to_all_places_where_there_is_a_request(
    requests: dict[int, dict[str, int]],
) -> None:
    shares = places(worker_shares(requests, {}))
    has_requests = any(count for of_worker in requests.values() for count in of_worker.values())
    assert sum(shares.values()) == pytest.approx(1.0 if has_requests else 0.0)
