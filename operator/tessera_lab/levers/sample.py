"""A trace as the load of a replica, and a part of a long trace that has whole sessions."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from tessera_lab.engine.play import TimedRequest
from tessera_lab.fleet.trace import Trace
from tessera_lab.levers.replica_rate import LoadSample
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS

# The rate of a trace changes from one window to the next; bursts are within them.
WINDOW = 300.0

# Prefixes of more of all requests are system prompts, and name no session.
_COMMON_SHARE = 0.01


def sampled(trace: Trace, most: int, seed: int) -> Trace:
    """Return whole sessions with at most so many requests together, at the rate of the trace.

    Sessions are drawn by the seed: what a client asks in a window, or the requests of one prefix;
    one that is longer than `most` counts only if there is no other. Requests come as far apart as
    they did, but the window is so much shorter that those of several hours come together.
    """
    if len(trace) <= most:
        return trace
    sessions = defaultdict[tuple[int, int], list[int]](list)
    for row, name in enumerate(
        _clients_by_window(trace) or ((each, 0) for each in _sessions(trace))
    ):
        sessions[name].append(row)
    names = sorted(sessions)
    random.Random(seed).shuffle(names)  # noqa: S311 - not a secret
    rows = list[int]()
    for name in names:
        if len(rows) + len(sessions[name]) <= most:
            rows += sessions[name]
        elif len(rows) > most / 2:
            # Going on would prefer short sessions.
            break
    part = trace.select(sorted(rows or sessions[names[0]]))
    return replace(part, seconds=trace.seconds * len(part) / len(trace)).overlaid(1, 0.0)


def _clients_by_window(trace: Trace) -> list[tuple[int, int]] | None:
    if trace.clients is None:
        return None
    windows = (int(arrival / WINDOW) for arrival in trace.arrivals)
    return list(zip(trace.clients, windows, strict=True))


def load_sample(trace: Trace) -> LoadSample:
    """Return the requests of a trace as replicas get them while their number follows the rate.

    Each window gets the time for its own requests, so that only the bursts within it remain.
    """
    counts = Counter(int(arrival / WINDOW) for arrival in trace.arrivals)
    totals = accumulate((counts[window] for window in sorted(counts)), initial=0)
    before = dict(zip(sorted(counts), totals, strict=False))
    rate = len(trace) / trace.seconds
    requests = tuple(
        TimedRequest(
            (before[window] + (each.at / WINDOW - window) * counts[window]) / rate, each.request
        )
        for each in trace.timed_requests()
        for window in (int(each.at / WINDOW),)
    )
    return LoadSample(
        name=trace.name,
        requests=requests,
        rate=rate,
        sessions=tuple(_sessions(trace)),
        shared_tokens=None if trace.prefixes is None else TRACE_BLOCK_TOKENS,
    )


def _sessions(trace: Trace) -> Iterator[int]:
    """Yield the number of each request's session, in the order of their first requests.

    Requests belong together that share a prefix which few others have; without prefixes each is
    alone.
    """
    if trace.prefixes is None:
        yield from range(len(trace))
        return
    counts = Counter(name for prefixes in trace.prefixes for name in prefixes)
    common, numbers = _COMMON_SHARE * len(trace), dict[int, int]()
    for row, prefixes in enumerate(trace.prefixes):
        name = next((name for name in prefixes if counts[name] <= common), -row - 1)
        yield numbers.setdefault(name, len(numbers))


def window_rates(trace: Trace) -> tuple[tuple[float, float], ...]:
    """Return the windows of a trace in seconds, with their requests per second."""
    counts = Counter(int(arrival / WINDOW) for arrival in trace.arrivals)
    spans = (
        (min(WINDOW, trace.seconds - window * WINDOW), counts[window])
        for window in range(max(1, math.ceil(trace.seconds / WINDOW)))
    )
    return tuple((seconds, count / seconds) for seconds, count in spans)
