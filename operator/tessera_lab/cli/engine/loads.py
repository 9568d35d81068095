"""The load of `tessera engine`: drawn from a mix, or the requests of a trace."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded
from tessera_lab.engine.mixes import CHAT, MIXES, LoadMix
from tessera_lab.engine.play import TimedRequest
from tessera_lab.fleet.trace_file import read_trace
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS, TRACE_FORMATS, TraceError

_DRAWN_REQUESTS = 1000
_MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLoad:
    """Requests for an engine, and how they can be drawn at other rates."""

    name: str
    arrivals: str
    """How they arrive, for people."""
    requests: tuple[TimedRequest, ...]
    mix: LoadMix | None
    """None for a trace."""
    seed: int
    shared_tokens: int | None
    """Tokens of each name of a shared prefix; None: one block."""

    def at_rate(self, rate: float) -> Sequence[TimedRequest]:
        """Return a drawn load at another rate; that of a trace has only its own."""
        if self.mix is None:
            return self.requests
        return self.mix.draw(len(self.requests), rate, self.seed)


def engine_load(arguments: SimpleNamespace) -> RequestLoad:
    """Return the load of the options; raise CommandError where they are invalid."""
    if arguments.requests is not None:
        bounded("--requests", arguments.requests, 1, _MAX_REQUESTS)
    if arguments.rate is not None:
        bounded("--rate", arguments.rate, 1e-4, 1e6)
        if arguments.slo is not None:
            raise CommandError("--rate is not allowed with --slo, which finds a rate")
    if arguments.trace is not None:
        return _recorded_load(arguments)
    name = arguments.load or CHAT.name
    system_tokens = int(bounded("--system-tokens", arguments.system_tokens, 0, 10**6))
    mix = replace(MIXES[name], system_tokens=system_tokens)
    count = arguments.requests or _DRAWN_REQUESTS
    return RequestLoad(
        name=name,
        arrivals="all at once"
        if arguments.rate is None
        else f"{arguments.rate:g} per second at random",
        requests=mix.draw(count, arguments.rate, arguments.seed),
        mix=mix,
        seed=arguments.seed,
        shared_tokens=None,
    )


def _recorded_load(arguments: SimpleNamespace) -> RequestLoad:
    drawn = {"--load": arguments.load, "--rate": arguments.rate, "--slo": arguments.slo}
    for name in (name for name, value in drawn.items() if value is not None):
        raise CommandError(f"{name} is not allowed with --trace, whose requests are recorded")
    try:
        trace = read_trace(arguments.trace)
    except TraceError as error:
        raise CommandError(f"--trace {error}; {TRACE_FORMATS}") from None
    return RequestLoad(
        name=trace.name,
        arrivals="as recorded",
        requests=trace.timed_requests()[: arguments.requests],
        mix=None,
        seed=arguments.seed,
        shared_tokens=None if trace.prefixes is None else TRACE_BLOCK_TOKENS,
    )
