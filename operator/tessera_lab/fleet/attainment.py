"""What a run must attain; runs are scored, and costs bounded from below, by the same rule."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SHORT_TRACE_SECONDS = 4 * 3600.0
# Keeps the count that a share asks for exact where the product of both is not.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class AttainmentScore:
    """How many requests of a run, and in how many windows, had their first token in time."""

    requests: int
    in_time: int
    windows: int
    """Windows in which a scored request arrived."""
    windows_in_time: int
    """Those of them in which the share of requests in time sufficed."""
    sufficient: bool
    """Whether the run attained what it had to."""

    @property
    def share(self) -> float:
        return self.in_time / self.requests if self.requests else 1.0

    @property
    def window_share(self) -> float:
        return self.windows_in_time / self.windows if self.windows else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttainmentGoal:
    """Which share of the requests must have their first token in time, overall and by window."""

    objective: float = 1.0
    """Longest time to the first token that is in time, seconds."""
    share: float = 0.95
    """Least share of requests in time, of all and in a window."""
    window: float = 300.0
    """Length of a window, seconds; the first one begins with the trace."""
    window_share: float = 0.95
    """Least share of the windows with requests in which `share` is kept."""
    ignore_before: float = 0.0
    """Requests that arrive before are not scored, seconds."""

    def window_of(self, arrival: float) -> int | None:
        """Return the window of a request by its arrival; None if it is not scored."""
        return None if arrival < self.ignore_before else int(arrival // self.window)

    def required_requests(self, requests: int) -> int:
        """Return how many of so many requests must be in time."""
        return math.ceil(self.share * requests - _ROUNDING)

    def required_windows(self, windows: int) -> int:
        """Return in how many of so many windows `share` must be kept."""
        return math.ceil(self.window_share * windows - _ROUNDING)

    def by_window(
        self, served: Iterable[tuple[float, float | None]]
    ) -> Mapping[int, tuple[int, int]]:
        """Return the requests of each window with some, and how many of them were in time.

        They are given by arrival and TTFT, None where none was served: seconds since the start of
        the trace and since the arrival, in any order.
        """
        requests, in_time = Counter[int](), Counter[int]()
        for arrival, ttft in served:
            window = self.window_of(arrival)
            if window is not None:
                requests[window] += 1
                in_time[window] += ttft is not None and ttft <= self.objective
        return {window: (count, in_time[window]) for window, count in requests.items()}

    def score(self, served: Iterable[tuple[float, float | None]]) -> AttainmentScore:
        """Score a run by the requests that `by_window` takes."""
        windows = self.by_window(served).values()
        total = sum(requests for requests, _ in windows)
        attained = sum(in_time for _, in_time in windows)
        windows_in_time = sum(
            in_time >= self.required_requests(requests) for requests, in_time in windows
        )
        return AttainmentScore(
            requests=total,
            in_time=attained,
            windows=len(windows),
            windows_in_time=windows_in_time,
            sufficient=attained >= self.required_requests(total)
            and windows_in_time >= self.required_windows(len(windows)),
        )


def attainment_goal(seconds: float, first_start: float) -> AttainmentGoal:
    """Return what a run over a trace of so many seconds must attain.

    A short trace has few windows: more of them may miss, and none is scored for requests before the
    first replicas are ready, `first_start` seconds after the beginning.
    """
    if seconds < SHORT_TRACE_SECONDS:
        return AttainmentGoal(window_share=0.90, ignore_before=first_start)
    return AttainmentGoal()
