"""Options of `tessera bench`."""

from typing import Any

import click

from tessera.cli.options import FILE, INTEGER, Command, argument, option, output_options

ENDPOINTS = ("chat", "completions")
_LENGTHS = "N, uniform:MIN:MAX or lognormal:P50:P95"


def _load_option(name: str, help_text: str, **settings: Any) -> click.Option:
    """Return an option for a load, of which a command line has one."""
    return option(name, help_text, callback=_refuse_second_load, **settings)


def _refuse_second_load(ctx: click.Context, param: click.Parameter, value: object) -> object:
    if value is None:
        return None
    if (other := ctx.meta.setdefault(__name__, param)) is not param:
        raise click.UsageError(f"{param.opts[0]} is not allowed with {other.opts[0]}", ctx)
    return value


bench = Command(
    "bench",
    "a load test of an OpenAI-compatible server",
    "Sends streamed requests with random prompts and reports latencies, throughput, cost, and "
    "reasons to doubt them. Ctrl-C ends it with the report so far. "
    "The API key comes from TESSERA_API_KEY or a file.",
    argument("url", "of the server, such as http://127.0.0.1:8000"),
    _load_option("--concurrency", "closed loop: N concurrent requests (default: 10)", **INTEGER),
    _load_option(
        "--sweep",
        "closed loop, one load after another, and the knee (the best throughput per latency)",
        metavar="N,N,...",
    ),
    _load_option(
        "--rate", "open loop: R requests per second, Poisson arrivals", metavar="R", type=float
    ),
    _load_option(
        "--trace", "open loop: recorded arrivals, CSV or Mooncake's JSON lines, or .gz", **FILE
    ),
    option("--speed", "replay the trace X times as fast", metavar="X", type=float, default=1.0),
    option(
        "--prompts",
        "requests (default: 100, in a sweep at least 8 per concurrent one; of a trace all)",
        **INTEGER,
    ),
    option("--warmup", "requests before that, which are not measured", **INTEGER, default=10),
    option("--timeout", "limit for one request", metavar="SECONDS", type=float, default=60.0),
    option("--model", "the model, where the server has several", metavar="NAME"),
    option("--endpoint", "the API to use", type=click.Choice(ENDPOINTS), default=ENDPOINTS[0]),
    option("--input-tokens", metavar="LENGTHS", default="512", help_text=_LENGTHS),
    option("--output-tokens", "the same, for output", metavar="LENGTHS", default="200"),
    option("--shared-prefix", "input tokens that all prompts share", **INTEGER, default=0),
    option(
        "--natural-end",
        "let output end before its length; without it vLLM's ignore_eos is sent",
        is_flag=True,
    ),
    option("--seed", "seed of prompts and arrivals", **INTEGER),
    option("--api-key-file", "file with the API key", **FILE),
    option(
        "--metrics",
        "metrics of all engines that serve, one URL each (default: /metrics of the server)",
        metavar="URL,...",
    ),
    option(
        "--gpu",
        "GPU for MFU and MBU, such as NVIDIA-H100-80GB-HBM3/3g.40gb",
        metavar="PRODUCT[/PROFILE]",
    ),
    option("--fp8", "relate MFU to the FP8 peak", is_flag=True),
    option("--price", "price of an hour of one GPU or slice, such as 3.50", metavar="AMOUNT"),
    option("--gpus", "GPUs or slices that serve", **INTEGER, default=1),
    option("--currency", "currency of the price", metavar="CODE", default="USD"),
    option(
        "--price-ratio",
        "price of an output token over that of an input token",
        metavar="X",
        type=float,
        default=4.0,
    ),
    option("--html", "also write the report with plots to this file", **FILE),
    option("--baseline", "an earlier report (-o json) to compare with", **FILE),
    *output_options(),
    module="tessera_lab.cli.bench.command",
)
