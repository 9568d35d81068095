"""Prompts of given lengths that no cache has seen, equal for equal seeds."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tessera.cli.errors import CommandError
from tessera_lab.load.lengths import LengthDistribution, fixed_length
from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS

_COMMON = """
about above after again air all along also always animal another answer any area around ask away
back base been before began begin being best better between big bird black blue body book both
box boy bring build busy but call came can car carry cause center change check children city
class clear close cold color come common complete could country course cover cross cut dark day
decide deep differ direct dog done door down draw drive dry during each early earth ease east
eat end enough even ever every example eye face fact fall family far farm fast father feel feet
few field figure fill final find fine fire first fish five fly follow food foot force form found
four free friend from front full game gave girl give gold good got govern great green ground
group grow had half hand happen hard has have head hear heard heat heavy help here high hold
home horse hot hour house hundred idea inch interest island just keep kind king knew know land
language large last late laugh lead learn leave left less letter life light like line list
listen little live long look lot love low machine made main make man many map mark may mean
measure men might mile mind minute miss money moon more morning most mother mountain move much
music must name near need never new next night north note nothing notice noun now number numeral
object off often old once one only open order other our out over own page paper part pass
pattern people perhaps person picture piece place plain plan plane plant play point port pose
possible pound power press problem produce product pull put question quick rain ran reach read
ready real record red rest right river road rock room round rule run said same saw say school
science sea second see seem self sentence serve set several shape she ship short should show
side simple since sing sit six size sleep slow small snow some song soon sound south special
spell stand star start state stay step still stood stop story street strong study such sun sure
surface table tail take talk teach tell ten test than that them then there these they thing
think this those though thought thousand three through time told too took top toward town travel
tree true try turn two under unit until upon use usual very voice vowel wait walk want war warm
watch water way week well went were west what wheel where which while white who whole why wind
with wonder wood word work world would write year you young
"""
# Most are one token each, with the space before them, in the vocabularies of today.
WORDS = tuple(_COMMON.split())


def parse_lengths(option: str, text: str) -> LengthDistribution:
    """Return the distribution; raise CommandError with the known forms."""
    if re.fullmatch(r"[1-9]\d{0,6}", text):
        return fixed_length(int(text))
    matched = re.fullmatch(r"(uniform|lognormal):([1-9]\d{0,6}):([1-9]\d{0,6})", text)
    if matched and int(matched[2]) <= int(matched[3]):
        return LengthDistribution(kind=matched[1], low=int(matched[2]), high=int(matched[3]))
    raise CommandError(
        f"{option} {text}: write a number (512), uniform:MIN:MAX (uniform:100:900) or "
        "lognormal:P50:P95 (lognormal:400:1600)"
    )


def draw_requests(
    seed: int,
    count: int,
    inputs: LengthDistribution,
    outputs: LengthDistribution,
    shared_tokens: int,
    rate: float | None,
) -> list[BenchRequest]:
    """Return requests with drawn lengths, and Poisson arrivals where there is a rate."""
    # The word is part of the seed, on which recorded runs depend.
    rng = random.Random(" ".join((str(seed), "jobs")))  # noqa: S311 - no secret
    arrival, requests = 0.0, []
    for number in range(count):
        arrival += rng.expovariate(rate) if rate else 0.0
        request = BenchRequest(
            number=number,
            arrival=arrival,
            input_tokens=max(inputs.draw(rng), shared_tokens + 1),
            output_tokens=outputs.draw(rng),
            shared_tokens=shared_tokens,
        )
        requests.append(request)
    return requests


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """Tokens of this server per word, as two requests have shown."""

    overhead: float = 0.0
    """Tokens of the chat template."""
    per_word: float = 1.0

    def word_count(self, tokens: int) -> int:
        return max(1, round((tokens - self.overhead) / self.per_word))


def token_ratio(short: tuple[int, int], long: tuple[int, int]) -> TokenRatio:
    """Return the ratio from (words, tokens) of two prompts."""
    per_word = (long[1] - short[1]) / (long[0] - short[0])
    if per_word <= 0:
        return TokenRatio()
    return TokenRatio(max(0.0, short[1] - short[0] * per_word), per_word)


class PromptGenerator:
    """The text of each request."""

    def __init__(self, seed: int, ratio: TokenRatio) -> None:
        self._seed, self._token_ratio = seed, ratio

    def text(self, request: BenchRequest, round_: int = 0) -> str:
        """Return the text of a trace's blocks; else the shared prefix and words of its own."""
        if request.blocks is not None:
            return " ".join(self._blocks(request))
        count, common = self._token_ratio.word_count(request.input_tokens), 0
        parts = []
        if request.shared_tokens:
            common = min(self._token_ratio.word_count(request.shared_tokens), count - 1)
            parts.append(random_words(f"{self._seed} shared", common))
        # Each round of a sweep has words of its own, so that it finds nothing in the cache.
        parts.append(random_words(f"{self._seed} {round_} {request.number}", count - common))
        return " ".join(parts)

    def _blocks(self, request: BenchRequest) -> Iterator[str]:
        remaining = request.input_tokens
        for position, block in enumerate(request.blocks or ()):
            tokens = min(remaining, TRACE_BLOCK_TOKENS)
            # Only before the first stands the chat's own form.
            plain_words = round(tokens / self._token_ratio.per_word)
            count = plain_words if position else self._token_ratio.word_count(tokens)
            yield random_words(f"{self._seed} block {block}", count)
            remaining -= tokens
            if remaining <= 0:
                return


def random_words(seed: str, count: int) -> str:
    """Return words drawn by a seed; a smaller count gives the beginning of a larger one."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    return " ".join(rng.choices(WORDS, k=count))
