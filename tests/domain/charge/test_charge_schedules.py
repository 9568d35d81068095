"""No schedule of gateways, messages, clocks and losses charges more than a limit."""

import pytest

from tests.domain.charge.machine import ChargeMachine, run


def test_no_schedule_charges_more_than_the_limit() -> None:
    run(ChargeMachine, steps=50, examples=40)


@pytest.mark.full
def test_no_schedule_of_many_charges_more_than_the_limit() -> None:
    run(ChargeMachine, steps=100, examples=1000)
