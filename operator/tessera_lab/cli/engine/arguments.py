"""Options of `tessera engine`."""

import click

from tessera.cli.options import FILE, INTEGER, Command, option, output_options

OUTPUT_FORMATS = ("table", "json")

engine = Command(
    "engine",
    "what one engine does with a load, by its options",
    "Serves a load with one simulated engine, without a cluster: throughput, latencies, and what "
    "batching, the KV cache and padding waste. Several setups of the engine are set side by side, "
    "such as static batches beside continuous batching. Speeds are predicted.",
    option("--model", "its name on the Hugging Face Hub", metavar="NAME", required=True),
    option(
        "--gpu",
        "named as the label nvidia.com/gpu.product has it, or a slice of it",
        metavar="PRODUCT[/PROFILE]",
        required=True,
    ),
    option("--gpus", "whole GPUs, tensor parallel", **INTEGER),
    option("--precision", "of the weights (default: of the model's files)", metavar="NAME"),
    option(
        "--batching",
        "continuous, or static:N for batches of N that run to their end (default: continuous)",
        metavar="HOW",
    ),
    option(
        "--kv-cache",
        "how it is reserved, if there is any (default: paged)",
        type=click.Choice(("paged", "contiguous", "none")),
    ),
    option(
        "--kv-cache-dtype",
        "precision of the KV cache; auto is 16 bits (default: auto)",
        type=click.Choice(("auto", "fp8")),
    ),
    option("--prefix-cache", "keep the prefixes of prompts", is_flag=True),
    option("--no-chunked-prefill", "compute every prompt in one step", is_flag=True),
    option(
        "--speculation",
        "K drafted tokens, the share that is accepted (or t0.8: of draft models at this "
        "temperature), and the time of a draft step as a share of a step (default: as predicted "
        "for --draft, else 0)",
        metavar="K:ACCEPTANCE[:COST]",
    ),
    option("--draft", "the draft model, whose memory counts", metavar="NAME"),
    option("--max-model-len", "tokens of prompt and output (default: 8192)", **INTEGER),
    option("--max-num-seqs", "concurrent requests (default: 256)", **INTEGER),
    option("--max-num-batched-tokens", "tokens of a step (default: 8192)", **INTEGER),
    option(
        "--setup",
        "another setup with these of the options above changed, such as "
        "batching=static:8,kv-cache=contiguous; off leaves one out; may be repeated",
        metavar="OPTION=VALUE,...",
        multiple=True,
    ),
    option(
        "--load",
        "lengths that are drawn (default: chat)",
        type=click.Choice(("chat", "rag", "code")),
    ),
    option("--trace", "recorded requests, CSV or Mooncake's JSON lines, or .gz", **FILE),
    option("--requests", "how many (default: 1000; of a trace all)", **INTEGER),
    option(
        "--system-tokens",
        "tokens of a system prompt that all drawn requests begin with",
        **INTEGER,
        default=0,
    ),
    option(
        "--rate",
        "requests per second, Poisson arrivals (default: all at once; of a trace as recorded)",
        metavar="R",
        type=float,
    ),
    option(
        "--slo",
        "find the highest rate whose P95 of TTFT and TPOT keep these",
        metavar="ttft=1s,itl=50ms",
    ),
    option("--seed", "seed of what is drawn", **INTEGER, default=1),
    option("--price", "USD per hour of one GPU", metavar="AMOUNT", type=float),
    *output_options(OUTPUT_FORMATS),
    module="tessera_lab.cli.engine.command",
)
