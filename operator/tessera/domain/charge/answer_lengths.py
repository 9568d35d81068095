"""How long the answers of a model are: what is reserved for one whose length is not known."""

from collections import deque
from dataclasses import dataclass, field

# Where too few answers are known.
UNKNOWN_P95_TOKENS = 1024
_LEAST_SAMPLES = 20
_MOST_SAMPLES = 200
# Between two sorts.
_STEP = 10
_SHARE = 0.95


@dataclass(slots=True)
class AnswerLengths:
    """The last answers of one model, in tokens of a choice."""

    p95: int = UNKNOWN_P95_TOKENS
    """95 % of them have no more."""
    _last: deque[int] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))
    _unsorted: int = 0

    def add(self, tokens: int) -> None:
        """Take the tokens of an answer that is complete."""
        self._last.append(tokens)
        self._unsorted += 1
        if len(self._last) >= _LEAST_SAMPLES and self._unsorted >= _STEP:
            self._unsorted = 0
            ordered = sorted(self._last)
            self.p95 = max(1, ordered[min(int(len(ordered) * _SHARE), len(ordered) - 1)])
