"""How long requests wait that arrive at random: Poisson arrivals, by formulas."""

import math
from dataclasses import dataclass
from typing import Self

# Squared coefficient of variation of lengths of which nothing is known: 0 if all are equal, 1 if
# they are exponential, which those of one service may be.
UNKNOWN_VARIATION = 1.0
# Beyond so many service times the sum of Erlang's formula loses its digits.
_MOST_EQUAL_TIMES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTime:
    """The time that a request takes beside its wait: at least `least` seconds, then exponential.

    So it has any mean and any variation; where it varies by more than 1, its least is below 0, and
    only what is longer counts.
    """

    least: float
    spread: float
    """Mean seconds beyond the least."""

    @classmethod
    def of(cls, mean: float, variation: float) -> Self:
        """Return a time with this mean and squared coefficient of variation."""
        spread = mean * math.sqrt(variation)
        return cls(least=mean - spread, spread=spread)

    def share_longer(self, slack: float, mean_wait: float = 0.0) -> float:
        """Return the share that takes longer than `slack` seconds after an exponential wait.

        The survival function of the sum of two exponential times.
        """
        beyond, long, short = slack - self.least, self.spread, mean_wait
        if beyond < 0:
            return 1.0
        if long < short:
            long, short = short, long
        if short < 1e-9 * long or long == 0:
            return math.exp(-beyond / long) if long else 0.0
        if long - short < 1e-3 * long:
            return (1 + beyond / long) * math.exp(-beyond / long)
        both = long * math.exp(-beyond / long) - short * math.exp(-beyond / short)
        return both / (long - short)


NO_TIME = OwnTime(least=0.0, spread=0.0)


def waiting_share(servers: int, busy: float) -> float:
    """Return the share of Poisson arrivals that must wait, by Erlang's C formula."""
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = servers * busy * blocked / (server + servers * busy * blocked)
    return blocked / (1 - busy * (1 - blocked))


def share_waiting_longer(
    slack: float,
    servers: int,
    busy: float,
    seconds: float,
    *,
    variation: float = UNKNOWN_VARIATION,
    own: OwnTime = NO_TIME,
) -> float:
    """Return the share of Poisson arrivals whose wait makes them longer than `slack` (M/G/n).

    Each takes so many `seconds` on average of one of the servers, with this squared coefficient of
    variation, and time of its `own`; those for which that alone is too long are left out. Waiting
    times are exponential beyond the share that need not wait.
    """
    if busy >= 1:
        return 1.0
    mean_wait = seconds * (1 + variation) / (2 * servers * (1 - busy))
    longer = own.share_longer(slack, mean_wait) - own.share_longer(slack)
    share = waiting_share(servers, busy) * longer
    beyond = slack - own.least - own.spread
    if servers == 1 and variation < 1 and beyond > 0:
        # Behind one of equal length, many wait for nearly as long as that, and few for longer.
        share += (1 - variation) * max(0.0, _equal_waits(beyond / seconds, busy) - share)
    return share


def _equal_waits(slack: float, busy: float) -> float:
    """Return the share that waits for longer than so many service times, all equal (M/D/1).

    Erlang's formula; 0 where its sum of alternating terms is not exact enough.
    """
    if slack > _MOST_EQUAL_TIMES:
        return 0.0
    terms = (
        math.exp(busy * (slack - ahead))
        * (-busy * (slack - ahead)) ** ahead
        / math.factorial(ahead)
        for ahead in range(int(slack) + 1)
    )
    return 1 - (1 - busy) * sum(terms)


def late_last(share: float, busy: float) -> float:
    """Return the share that is late where those that cannot be in time wait for all others.

    `share` is late by arrival, at servers that are so `busy`. Requests that are late delay no other
    one: M/M/n with a deadline (Barrer, 1957).
    """
    return share * (1 - busy) / (1 - share * busy) if busy < 1 else 1.0


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

    def busy(self, rate: float) -> float:
        """Return the share of the places that is taken at so many arrivals per second."""
        full_seconds = self.alone_seconds + (self.places - 1) * self.shared_seconds
        return rate * full_seconds / self.places

    def share_waiting_longer(
        self,
        slack: float,
        rate: float,
        replicas: int,
        *,
        variation: float = 0.0,
        own: OwnTime = NO_TIME,
    ) -> float:
        """Return the share of arrivals whose wait for a place makes them longer than `slack`.

        `rate` is that of one replica; the places of all replicas are taken as one engine's. The
        lengths of prompts have this squared coefficient of `variation`, and those whose `own` time
        alone is too long are left out.
        """
        busy = self.busy(rate)
        if busy >= 1 or rate * self.shared_seconds >= 1:
            return 1.0
        places = replicas * self.places
        # The approximation below is too rough for one place, which is one server.
        waiting = busy if places == 1 else self._waiting_share(busy, rate, replicas)
        # As if all had their places for exponential times; those that vary wait longer, by a factor
        # between what engines with many places and with few need.
        mean_wait = busy * (1 + math.sqrt(variation) / 2) / (rate * replicas * (1 - busy))
        return waiting * (own.share_longer(slack, mean_wait) - own.share_longer(slack))

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
