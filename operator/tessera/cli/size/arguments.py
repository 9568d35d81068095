"""Options of `tessera size`."""

import click

from tessera.cli.options import FILE, INTEGER, Command, argument, option, output_options

SIZE = Command(
    "size",
    "the hardware that a model fits on, with speed and cost",
    "Sizes a model on all hardware that has a price, in every precision, without any cluster: "
    "for each the smallest instance that serves it, and why. Speeds are predicted and prices "
    "assumed, unless a file gives them.",
    argument("model", "its name on the Hugging Face Hub", required=False),
    option("--config", "the config.json of a model outside the catalog", **FILE),
    option(
        "--gpu",
        "only these GPUs, named as the label nvidia.com/gpu.product has them",
        metavar="PRODUCT,...",
    ),
    option(
        "--precision",
        "only these precisions: checkpoint, fp8, int8, awq-int4, gptq-int4, nvfp4",
        metavar="NAME,...",
    ),
    option("--tensor-parallel", "only replicas over N whole GPUs", **INTEGER),
    option(
        "--compare",
        "every slice and number of GPUs, cheapest tokens first, against the cheapest",
        is_flag=True,
    ),
    option("--prices", "JSON with dated prices of GPUs", **FILE),
    option("--catalogs", "JSON with further GPUs and models", **FILE),
    option(
        "--api-price",
        "what a million output tokens cost elsewhere: shows where serving breaks even",
        metavar="AMOUNT",
    ),
    option(
        "--slo",
        "the SLO to meet; finds the simplest instance that does",
        metavar="ttft=1s,itl=33ms",
    ),
    option(
        "--context",
        "maximum tokens of prompt and response (default: 8192, or the model's if smaller)",
        **INTEGER,
    ),
    option("--input-tokens", "tokens of a typical prompt", **INTEGER, default=1200),
    option("--output-tokens", "tokens of a typical response", **INTEGER, default=250),
    option(
        "--kv-cache-dtype",
        "precision of the KV cache; auto is 16 bits",
        type=click.Choice(("auto", "fp8")),
        default="auto",
    ),
    option(
        "--extra-arg",
        "flag of vllm serve as in spec.engine.extraArgs, such as --extra-arg=--enforce-eager; may "
        "be repeated",
        multiple=True,
    ),
    option(
        "--max-num-seqs",
        "concurrent requests of a replica (default: the most within the SLO)",
        **INTEGER,
    ),
    option(
        "--max-num-batched-tokens",
        "tokens of one engine step (default: the best within the SLO)",
        **INTEGER,
    ),
    option(
        "--gpu-memory-utilization",
        "share of each device's memory for the engine (default: 0.92)",
        metavar="SHARE",
    ),
    option(
        "--block-size",
        "tokens of a block of the KV cache (default: 16)",
        type=click.Choice(("16", "32", "64", "128")),
    ),
    option("--draft", "a draft model for speculative decoding", metavar="MODEL"),
    option("--draft-tokens", "tokens that it drafts for each request (default: 5)", **INTEGER),
    option("--adapters", "slots for LoRA adapters", **INTEGER, default=0),
    option("--rank", "rank of the adapters", metavar="R", type=int, default=16),
    *output_options(),
)
