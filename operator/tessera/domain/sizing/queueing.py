"""How long requests wait that arrive at random: Poisson arrivals, by formulas."""

import math

# Squared coefficient of variation of the lengths of prompts and texts: 0 if all are equal, 1 if
# they are exponential, which those of one service may be.
_LENGTH_VARIATION = 1.0


def waiting_share(servers: int, busy: float) -> float:
    """Return the share of Poisson arrivals that must wait, by Erlang's C formula."""
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = servers * busy * blocked / (server + servers * busy * blocked)
    return blocked / (1 - busy * (1 - blocked))


def share_waiting_longer(slack: float, servers: int, busy: float, seconds: float) -> float:
    """Return the share of Poisson arrivals that wait longer than `slack` seconds (M/G/n).

    Each takes so many `seconds` on average of one of the servers. Waiting times are exponential
    beyond the share that need not wait.
    """
    if busy >= 1:
        return 1.0
    mean_wait = seconds * (1 + _LENGTH_VARIATION) / (2 * servers * (1 - busy))
    return waiting_share(servers, busy) * math.exp(-slack / mean_wait)
