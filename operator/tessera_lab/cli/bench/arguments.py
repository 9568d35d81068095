"""Options of `tessera bench`."""

import argparse

from tessera.cli.options import Commands, add_command, add_output_options

ENDPOINTS = ("chat", "completions")


def bench(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        "a load test of an OpenAI-compatible server",
        "Sends streamed requests with random prompts and reports latencies, throughput, cost, and "
        "reasons to doubt them. Ctrl-C ends it with the report so far. "
        "The API key comes from TESSERA_API_KEY or a file.",
        module="tessera_lab.cli.bench.command",
    )
    parser.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:8000")
    _add_bench_loads(parser)
    _add_request_options(parser)
    _add_cost_options(parser)
    parser.add_argument(
        "--html", metavar="FILE", help="also write the report with plots to this file"
    )
    parser.add_argument(
        "--baseline", metavar="FILE", help="an earlier report (-o json) to compare with"
    )
    add_output_options(parser)


def _add_bench_loads(parser: argparse.ArgumentParser) -> None:
    load_group = parser.add_argument_group("load").add_mutually_exclusive_group()
    load_group.add_argument(
        "--concurrency",
        metavar="N",
        type=int,
        help="closed loop: N concurrent requests (default: 10)",
    )
    load_group.add_argument(
        "--sweep",
        metavar="N,N,...",
        help="closed loop, one load after another, and the knee (the best throughput per latency)",
    )
    load_group.add_argument(
        "--rate", metavar="R", type=float, help="open loop: R requests per second, Poisson arrivals"
    )
    load_group.add_argument(
        "--trace",
        metavar="FILE",
        help="open loop: recorded arrivals, CSV or Mooncake's JSON lines, or .gz",
    )
    parser.add_argument(
        "--speed",
        metavar="X",
        type=float,
        default=1.0,
        help="replay the trace X times as fast (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        metavar="N",
        type=int,
        help="requests (default: 100, in a sweep at least 8 per concurrent one; of a trace all)",
    )
    parser.add_argument(
        "--warmup",
        metavar="N",
        type=int,
        default=10,
        help="requests before that, which are not measured (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="limit for one request (default: %(default)s)",
    )


def _add_request_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="the model, where the server has several")
    parser.add_argument(
        "--endpoint",
        choices=ENDPOINTS,
        default=ENDPOINTS[0],
        help="the API to use (default: %(default)s)",
    )
    form = "N, uniform:MIN:MAX or lognormal:P50:P95"
    parser.add_argument(
        "--input-tokens", metavar="LENGTHS", default="512", help=f"{form} (default: %(default)s)"
    )
    parser.add_argument(
        "--output-tokens",
        metavar="LENGTHS",
        default="200",
        help="the same, for output (default: %(default)s)",
    )
    parser.add_argument(
        "--shared-prefix",
        metavar="N",
        type=int,
        default=0,
        help="input tokens that all prompts share (default: %(default)s)",
    )
    parser.add_argument(
        "--natural-end",
        action="store_true",
        help="let output end before its length; without it vLLM's ignore_eos is sent",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="seed of prompts and arrivals")
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the API key")


def _add_cost_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics",
        metavar="URL,...",
        help="metrics of all engines that serve, one URL each (default: /metrics of the server)",
    )
    parser.add_argument(
        "--gpu",
        metavar="PRODUCT[/PROFILE]",
        help="GPU for MFU and MBU, such as NVIDIA-H100-80GB-HBM3/3g.40gb",
    )
    parser.add_argument("--fp8", action="store_true", help="relate MFU to the FP8 peak")
    parser.add_argument(
        "--price", metavar="AMOUNT", help="price of an hour of one GPU or slice, such as 3.50"
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=int,
        default=1,
        help="GPUs or slices that serve (default: %(default)s)",
    )
    parser.add_argument(
        "--currency",
        metavar="CODE",
        default="USD",
        help="currency of the price (default: %(default)s)",
    )
    parser.add_argument(
        "--price-ratio",
        metavar="X",
        type=float,
        default=4.0,
        help="price of an output token over that of an input token (default: %(default)s)",
    )
