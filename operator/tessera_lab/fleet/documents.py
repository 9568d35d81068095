"""Questions about long documents, each of which stands before the question."""

import random
from array import array

from tessera_lab.fleet.generators import LONGEST_OUTPUT, arrival_times
from tessera_lab.fleet.trace import Trace, TurnSpans
from tessera_lab.load.lengths import log_normal

# Of a name in `Trace.prefixes`.
_PREFIX_TOKENS = 64
_QUESTIONS, _ANSWERS = log_normal(60.0, 400.0), log_normal(150.0, 500.0)


def document_questions(
    rate: float,
    seconds: float,
    seed: int,
    *,
    tenants: int = 1,
    documents: int = 64,
    document_tokens: int = 5000,
) -> Trace:
    """Return questions at a rate; the n-th document is asked about 1/n as often as the first.

    All tenants ask about the same documents, whose prefixes are each tenant's own, as by a salt.
    """
    rng = random.Random(seed)  # noqa: S311 - not a secret
    times = list(arrival_times(lambda _: rate, seconds, rng))
    weights = [1 / (number + 1) for number in range(documents)]
    asked = rng.choices(range(documents), weights, k=len(times))
    clients = array("i", (rng.randrange(tenants) for _ in times))
    units = document_tokens // _PREFIX_TOKENS
    owned = [client * documents + number for client, number in zip(clients, asked, strict=True)]
    prompts = array("i", (document_tokens + _QUESTIONS.draw(rng) for _ in times))
    return Trace(
        name="documents",
        seconds=seconds,
        arrivals=array("d", times),
        input_tokens=prompts,
        output_tokens=array("i", (min(_ANSWERS.draw(rng), LONGEST_OUTPUT) for _ in times)),
        clients=clients,
        prefixes=tuple(tuple(range(each * units, (each + 1) * units)) for each in owned),
        prefix_tokens=_PREFIX_TOKENS,
        turns=tuple(
            TurnSpans(row, document, document_tokens, prompt, 0)
            for row, (document, prompt) in enumerate(zip(owned, prompts, strict=True))
        ),
    )
