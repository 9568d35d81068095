"""The order of levers, and whether it means anything."""

import pytest

from tessera_lab.levers.lever import LeverId, levers
from tessera_lab.levers.ranking import DRAWS, rank

ALIKE = (LeverId.PREFIX_CACHE, LeverId.SCALING, LeverId.RIGHT_SIZE)


def test_levers_are_ordered_by_saving_times_confidence_over_risk_times_effort() -> None:
    ranking = rank({LeverId.ROUTING: 1000.0, LeverId.SCALING: 300.0, LeverId.MIG: -1.0})
    assert [(row.lever, row.saving) for row in ranking.rows] == [
        (LeverId.SCALING, 300.0),
        (LeverId.ROUTING, 1000.0),
    ]
    routing = levers()[LeverId.ROUTING]
    assert ranking.rows[1].score == pytest.approx(1000 * routing.confidence / (3 * 2))


def test_savings_that_are_far_apart_keep_their_places() -> None:
    # Three factors of 2 on both sides are a factor of 64.
    savings = {lever: 65.0**place for place, lever in enumerate(ALIKE)}
    ranking = rank(savings)
    assert [row.stays for row in ranking.rows] == [1.0] * len(ALIKE)
    assert not ranking.is_noise


def test_an_order_of_equal_savings_is_called_noise() -> None:
    ranking = rank(dict.fromkeys(ALIKE, 100.0))
    assert all(row.stays == pytest.approx(1 / len(ALIKE), abs=0.05) for row in ranking.rows)
    assert (ranking.stable, ranking.is_noise) == (0, True)


def test_the_same_seed_draws_the_same_and_another_one_nearly_so() -> None:
    savings = {lever: 100.0 + 40 * place for place, lever in enumerate(ALIKE)}
    assert rank(savings, 7) == rank(savings, 7)
    pairs = zip(rank(savings, 7).rows, rank(savings, 8).rows, strict=True)
    assert all(abs(one_seed.stays - other.stays) < 3 / DRAWS**0.5 for one_seed, other in pairs)


def test_one_lever_has_the_only_place() -> None:
    assert rank({LeverId.SCALING: 1.0}).rows[0].stays == 1.0
    assert rank({}).rows == ()
