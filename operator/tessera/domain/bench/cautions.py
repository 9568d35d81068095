"""What a reader has to know before believing a figure."""

from collections.abc import Iterator

from tessera.domain.bench.figures import BUSY, Figures

_CACHE_HOT = 0.05
_OFF = 0.1
_LATE_SECONDS = 0.01


def cautions(found: Figures, shared: float, *, natural_end: bool) -> Iterator[str]:
    """Sentences, the gravest first.

    `shared` of the prompts' tokens repeat by design; with `natural_end` answers may be shorter than
    their bound.
    """
    level = found.level
    if level.unfinished:
        yield f"interrupted: {level.unfinished} requests were broken off and are not counted"
    if found.failures:
        yield from _failures(found)
    yield from _client(found)
    yield from _cache(found, shared)
    yield from _lengths(found, natural_end=natural_end)
    yield from _engine(found)


def _failures(found: Figures) -> Iterator[str]:
    for kind, count in found.failures.items():
        first = next(one for one in found.level.answers if one.failure == kind)
        yield f"{count} {kind}, the first: {first.detail}"
    yield f"all other figures are of the {found.whole} whole answers"


def _client(found: Figures) -> Iterator[str]:
    client = found.client
    if client.cpu_share > BUSY:
        yield (
            f"the client used {client.cpu_share:.0%} of a processor: it may be what is measured "
            "here; run it on another machine, or with less load"
        )
    first = found.latencies.first_token
    if client.late_seconds > max(_LATE_SECONDS, 0.05 * first.p50 if first else 0):
        yield (
            f"requests were sent late by {client.late_seconds * 1e3:.0f} ms (P95); that is counted "
            "as if the server had taken it"
        )


def _cache(found: Figures, shared: float) -> Iterator[str]:
    shares = [found.cached_share, found.work.prefix_hits if found.work and found.trusted else None]
    share = max((one for one in shares if one is not None), default=0.0)
    if share > shared + _CACHE_HOT:
        yield (
            f"cache-hot: {share:.0%} of the prompts' tokens came out of the prefix cache, "
            f"{shared:.0%} are shared by design: the server has seen these prompts, and "
            "first tokens look too good; take another --seed"
        )


def _lengths(found: Figures, *, natural_end: bool) -> Iterator[str]:
    whole = [answer for answer in found.level.answers if answer.whole]
    if not whole:
        return
    if any(not answer.exact for answer in whole):
        yield (
            "the server sends no usage: each chunk was taken for one token, which is too few where "
            "chunks carry several, and prompts are not counted"
        )
    meant = sum(answer.job.output_tokens for answer in whole)
    if not natural_end and abs(found.output_tokens - meant) > _OFF * meant:
        yield (
            f"answers have {found.output_tokens / len(whole):.0f} tokens on average instead of "
            f"{meant / len(whole):.0f}: the server ends them by itself"
        )
    meant = sum(answer.job.input_tokens for answer in whole)
    if found.input_tokens and abs(found.input_tokens - meant) > _OFF * meant:
        yield (
            f"prompts have {found.input_tokens / len(whole):.0f} tokens on average instead of "
            f"{meant / len(whole):.0f}: the figures are those of the lengths that were"
        )


def _engine(found: Figures) -> Iterator[str]:
    level, done = found.level, found.work
    if not level.before.speaks:
        return
    if done is None:
        yield (
            "the engine's counters are not of one process from begin to end (several replicas, or "
            "a restart): they are left out; name each engine with --metrics URL,URL"
        )
    elif not found.trusted:
        seen = sum(answer.output_tokens for answer in level.answers)
        yield (
            f"the engine counted {done.output_tokens:.0f} output tokens, the client {seen}: other "
            "users, or several replicas; the engine's figures are not of this test alone"
        )
