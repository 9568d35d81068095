"""The clock by which a process leads."""

import time

from tessera.adapters.clock import seconds_since_boot


def test_the_time_in_which_the_machine_was_suspended_counts() -> None:
    clocks = {time.CLOCK_MONOTONIC: 5.0, time.CLOCK_BOOTTIME: 3605.0}
    assert seconds_since_boot(clocks.__getitem__) == 3605.0
    assert seconds_since_boot() <= seconds_since_boot()
