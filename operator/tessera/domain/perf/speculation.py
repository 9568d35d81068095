"""Speculative decoding: the tokens that a step yields, and what that gains.

An engine drafts `k` tokens for each sequence and verifies all of them in one step of the model. The
acceptance `a` is the probability that a drafted token is accepted, given that those before it were.
Engines count the share of drafted tokens that were accepted, which is smaller: a rejected token
takes all after it with it.
"""

import math

# Acceptance where both models sample at temperatures 0 and 1: means of three drafts and two tasks
# of T5-XXL in arXiv:2211.17192, table 2.
_GREEDY_ACCEPTANCE, _SAMPLED_ACCEPTANCE = 0.75, 0.61
# Engines sample at this temperature unless a request or the model says otherwise.
_DEFAULT_TEMPERATURE = 1.0
# Of the acceptance, which is finer than any count of tokens.
_BISECTIONS = 30


def expected_tokens(acceptance: float, draft_tokens: float) -> float:
    """Return the mean tokens that a step yields of one sequence: (1 - a^(k+1)) / (1 - a)."""
    if acceptance >= 1:
        return draft_tokens + 1
    return (1 - math.pow(acceptance, draft_tokens + 1)) / (1 - acceptance)


def decode_gain(acceptance: float, draft_tokens: int, draft_cost: float) -> float:
    """Return how many times as fast one request decodes where only reading weights takes time.

    `draft_cost` is the time of a step of the draft model as a share of the model's.
    """
    return expected_tokens(acceptance, draft_tokens) / (1 + draft_tokens * draft_cost)


def assumed_acceptance(temperature: float = _DEFAULT_TEMPERATURE) -> float:
    """Return the acceptance of draft models at a sampling temperature from 0 to 1.

    It is interpolated between measurements at 0 and at 1.
    """
    return _GREEDY_ACCEPTANCE - temperature * (_GREEDY_ACCEPTANCE - _SAMPLED_ACCEPTANCE)


def acceptance_of(accepted_share: float, draft_tokens: float) -> float:
    """Return the acceptance at which this share of the drafted tokens is accepted."""
    if accepted_share >= 1 or draft_tokens <= 0:
        return min(1.0, max(0.0, accepted_share))
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if expected_tokens(middle, draft_tokens) - 1 < accepted_share * draft_tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2
