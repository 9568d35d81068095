"""How long requests wait that arrive at random: Poisson arrivals, by formulas."""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class EngineOccupancy:
    """The requests in an engine, each of which takes longer the more of them run.

    Were there a place for each, they would be as many as a negative binomial distribution says,
    whatever the lengths of their answers; a Poisson distribution where none slows another one.
    """

    places: int
    alone_seconds: float
    """Time that a request has its place while no other one runs."""
    shared_seconds: float
    """What each further request adds to that."""

    def mean(self, rate: float) -> float:
        """Return the mean requests at so many arrivals per second; infinite if they only grow."""
        free = 1 - rate * self.shared_seconds
        return rate * self.alone_seconds / free if free > 0 else math.inf

    def share_waiting_longer(self, slack: float, rate: float, replicas: int) -> float:
        """Return the share of arrivals that wait for a place for longer than `slack` seconds.

        `rate` is that of one replica; the places of all replicas are taken as one engine's.
        """
        full_seconds = self.alone_seconds + (self.places - 1) * self.shared_seconds
        busy = rate * full_seconds / self.places
        if busy >= 1 or rate * self.shared_seconds >= 1:
            return 1.0
        places = replicas * self.places
        # The approximation below is too rough for one place, which is one server.
        waiting = busy if places == 1 else self._waiting_share(busy, rate, replicas)
        return waiting * math.exp(-slack * (1 - busy) * places / full_seconds)

    def _waiting_share(self, busy: float, rate: float, replicas: int) -> float:
        """Return the share of arrivals that find no place.

        As in Erlang's C formula: while all places are taken, requests end at a constant rate.
        """
        places = replicas * self.places
        place_free = self._share_below(places, rate, replicas)
        none_waits = self._share_below(places + 1, rate, replicas)
        if none_waits <= 0:
            return 1.0
        return 1 - (1 - busy) * place_free / (none_waits - busy * place_free)

    def _share_below(self, requests: int, rate: float, replicas: int) -> float:
        """Return the share of time with less than so many requests, were there places for all."""
        # The distribution's variance is its mean divided by this.
        free = 1 - rate * self.shared_seconds
        # That of a Poisson distribution with the same ratio, as approximated by Wilson and
        # Hilferty, between this number and one less.
        shape = (requests - 0.5) * free + 0.5
        ratio = replicas * rate * self.alone_seconds / shape
        deviations = 3 * math.sqrt(shape) * (1 - 1 / (9 * shape) - math.cbrt(ratio))
        return math.erfc(-deviations / math.sqrt(2)) / 2
