"""Statistics of a paired loss: of two sources that answered the same prompts.

A step is what one prompt loses, between -1 and 1, times its weight; the loss is the weighted mean
of the prompts. Nothing is drawn at random: equal input gives equal numbers, in whatever order.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

_NORMAL = NormalDist()
BOUND_DEVIATIONS = _NORMAL.inv_cdf(0.95)
POWER = 0.8
MAX_NEEDED_PROMPTS = 1_000_000

# So many sizes of steps in an exact sign test, for which halves, thirds and fifths are exact. The
# sum of more steps is normally distributed.
_LEVELS = 60
_EXACT_STEPS = 500


def binomial_tail(heads: int, tosses: int) -> float:
    """Return the probability of at least so many heads of a fair coin."""
    if heads <= 0:
        return 1.0
    if heads <= tosses / 2:
        return 1.0 - binomial_tail(tosses - heads + 1, tosses)
    if heads > tosses:
        return 0.0
    logarithm = math.lgamma(tosses + 1) - math.lgamma(heads + 1) - math.lgamma(tosses - heads + 1)
    term = total = math.exp(logarithm - tosses * math.log(2))
    for more in range(heads, tosses):
        term *= (tosses - more) / (more + 1)
        total += term
        if term < total * 1e-17:
            break
    return total


def sign_test(steps: Iterable[float]) -> float:
    """Return how probable a loss of at least this size is, if each step had either sign alike.

    For yes and no it is McNemar's exact test. Steps of different sizes are rounded to sixtieths of
    the largest, which keeps the test exact, and all 2^n signs are counted.
    """
    steps = [step for step in steps if step]
    if not steps:
        return 1.0
    largest, smallest = max(map(abs, steps)), min(map(abs, steps))
    if largest - smallest <= 1e-9 * largest:
        return binomial_tail(sum(step > 0 for step in steps), len(steps))
    if len(steps) > _EXACT_STEPS:
        deviation = math.sqrt(math.fsum(step * step for step in steps))
        return _NORMAL.cdf((smallest - math.fsum(steps)) / deviation)
    sizes = [round(_LEVELS * step / largest) for step in steps]
    # Field k of this number counts the choices of positive steps whose sum is k.
    width = len(sizes) + 1
    choices = 1
    for size in sizes:
        choices += choices << (width * abs(size))
    observed = sum(size for size in sizes if size > 0)
    # Modulo 2^w - 1, fields of w bits add up.
    as_large = (choices >> (width * observed)) % ((1 << width) - 1)
    return as_large / (1 << len(sizes))


def rejected_by_holm(p_values: Mapping[str, float], level: float) -> frozenset[str]:
    """Return whose loss is proven at a level for all together."""
    rejected: set[str] = set()
    for name, p_value in sorted(p_values.items(), key=lambda item: (item[1], item[0])):
        if p_value > level / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return frozenset(rejected)


def loss_bound(losses: Mapping[tuple[float, float], float]) -> float:
    """Return the one-sided bound of 95 % of the loss, from counts of (loss, weight).

    It is that of the bootstrap with exponential weights over these prompts and one more that loses
    everything; its distribution is computed by the saddle point instead of by drawing. For prompts
    that only lose or not, it is the bound of Clopper and Pearson.
    """
    weights = math.fsum(weight * count for (_, weight), count in losses.items())
    # A prompt of a heavy weight may be the one that is not seen.
    heavy = math.fsum(weight * weight * count for (_, weight), count in losses.items()) / weights
    counts = Counter({(1.0, heavy): 1.0})
    counts.update({key: float(count) for key, count in losses.items()})
    rows = sorted((loss, weight / heavy, count) for (loss, weight), count in counts.items())
    total = math.fsum(weight * count for _, weight, count in rows)
    low = math.fsum(loss * weight * count for loss, weight, count in rows) / total
    high, tilt = 1.0, 0.0
    for _ in range(30):
        middle = (low + high) / 2
        deviations, tilt = _deviations(rows, middle, tilt)
        if deviations < BOUND_DEVIATIONS:
            low = middle
        else:
            high = middle
    return high


def _deviations(
    rows: Sequence[tuple[float, float, float]], bound: float, tilt: float
) -> tuple[float, float]:
    """Return how many deviations a bound is above the bootstrap's loss, and the saddle point."""
    steps = [(weight * (loss - bound), count) for loss, weight, count in rows]
    largest = max(step for step, _ in steps)
    if largest <= 0:
        return math.inf, 0.0
    low, high = 0.0, 1 / largest
    tilt = tilt if low < tilt < high else high / 2
    for _ in range(60):
        slope = math.fsum(count * step / (1 - tilt * step) for step, count in steps)
        curve = math.fsum(count * (step / (1 - tilt * step)) ** 2 for step, count in steps)
        if slope < 0:
            low = tilt
        else:
            high = tilt
        change = slope / curve
        if abs(change) * math.sqrt(curve) < 1e-7:
            break
        tilt = tilt - change if low < tilt - change < high else (low + high) / 2
    cumulant = -math.fsum(count * math.log1p(-tilt * step) for step, count in steps)
    root = math.sqrt(max(0.0, -2 * cumulant))
    # Near the mean the correction is 0 / 0, and the bound is far above it.
    if root < 0.1:
        return root, tilt
    return root + math.log(tilt * math.sqrt(curve) / root) / root, tilt


def unseen_loss(prompts: int, discordance: float, level: float) -> float:
    """Return the loss of yes-or-no prompts that the sign test proves in 8 of 10 cases.

    The discordance is what two sources differ without any loss, as a share of the prompts, and the
    loss comes on top of it; 1 if no loss is proven so often.
    """
    low, high = 0.0, 1.0
    for _ in range(14):
        loss = (low + high) / 2
        if _proven_share(prompts, discordance, loss, level) < POWER:
            low = loss
        else:
            high = loss
    return high


def _proven_share(prompts: int, discordance: float, loss: float, level: float) -> float:
    """Return in which share of the cases the sign test proves a loss.

    The differing prompts are taken at the midpoints of five equal parts of their distribution.
    """
    differing = min(1.0, discordance + loss)
    lost = (discordance / 2 + loss) / (discordance + loss)
    deviation = math.sqrt(prompts * differing * (1 - differing))
    share = 0.0
    for midpoint in (0.1, 0.3, 0.5, 0.7, 0.9):
        pairs = round(prompts * differing + deviation * _NORMAL.inv_cdf(midpoint))
        needed = _losses_of_proof(max(0, pairs), level)
        if needed <= pairs:
            spread = math.sqrt(max(pairs * lost * (1 - lost), 1e-12))
            share += _NORMAL.cdf((pairs * lost - needed + 0.5) / spread) / 5
    return share


def _losses_of_proof(pairs: int, level: float) -> int:
    """Return how many of the differing prompts are lost at least in a proof."""
    losses = math.ceil((pairs - _NORMAL.inv_cdf(level) * math.sqrt(pairs)) / 2)
    while losses > 0 and binomial_tail(losses - 1, pairs) <= level:
        losses -= 1
    while binomial_tail(losses, pairs) > level:
        losses += 1
    return losses


def needed_prompts(
    margin: float, variance: float, strata: Iterable[tuple[float, float, float]]
) -> int:
    """Return with how many prompts an equal candidate passes in 8 of 10 cases.

    Each stratum has its share of all prompts, its margin and the variance of its differences. At
    most MAX_NEEDED_PROMPTS, which then do not suffice either.
    """
    strata = tuple(strata)

    def passes(prompts: float) -> float:
        width = math.sqrt((variance + margin * margin + 1 / prompts) / prompts)
        # What is left of the margin for the total, given that each stratum is below its own.
        room, spread, chance = margin - 1 / prompts - BOUND_DEVIATIONS * width, 0.0, 1.0
        for share, stratum_margin, stratum_variance in strata:
            deviation = math.sqrt(max(stratum_variance, 1e-12) / (share * prompts))
            below = _NORMAL.cdf(stratum_margin / deviation)
            density = _NORMAL.pdf(stratum_margin / deviation) / below
            chance *= below
            room += share * deviation * density
            cut = density * (density + stratum_margin / deviation)
            spread += (share * deviation) ** 2 * (1 - cut)
        return chance * _NORMAL.cdf(room / math.sqrt(spread))

    # Where no answer differs, the bound is some 3.01 by the number of prompts.
    low, high = math.ceil(3.02 / margin), MAX_NEEDED_PROMPTS
    while low < high:
        middle = (low + high) // 2
        if passes(middle) < POWER:
            low = middle + 1
        else:
            high = middle
    return high
