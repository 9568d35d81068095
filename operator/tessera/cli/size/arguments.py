"""Options of `tessera size`."""

import argparse

from tessera.cli.options import Commands, add_command, add_output_options

KV_DTYPES = ("auto", "fp8")


def size(commands: Commands) -> None:
    parser = add_command(
        commands,
        "size",
        "the hardware that a model fits on, with speed and cost",
        "Sizes a model on all hardware that has a price, in every precision, without any cluster: "
        "for each the smallest instance that serves it, and why. Speeds are predicted and prices "
        "assumed, unless a file gives them.",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="its name on the Hugging Face Hub"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the config.json of a model outside the catalog"
    )
    _add_hardware_options(parser)
    _add_load_options(parser)
    _add_memory_options(parser)
    add_output_options(parser)


def _add_hardware_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for hardware and its price."""
    parser.add_argument(
        "--gpu",
        metavar="PRODUCT,...",
        help="only these GPUs, named as the label nvidia.com/gpu.product has them",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME,...",
        help="only these precisions: checkpoint, fp8, int8, awq-int4, gptq-int4",
    )
    parser.add_argument(
        "--tensor-parallel", metavar="N", type=int, help="only replicas over N whole GPUs"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="every slice and number of GPUs, cheapest tokens first, against the cheapest",
    )
    parser.add_argument("--prices", metavar="FILE", help="JSON with dated prices of GPUs")
    parser.add_argument(
        "--api-price",
        metavar="AMOUNT",
        help="what a million output tokens cost elsewhere: shows where serving breaks even",
    )


def _add_load_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for load and SLO."""
    parser.add_argument(
        "--slo",
        metavar="ttft=1s,itl=33ms",
        help="the SLO to meet; finds the simplest instance that does",
    )
    parser.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="maximum tokens of prompt and response (default: 8192, or the model's if smaller)",
    )
    parser.add_argument(
        "--input-tokens",
        metavar="N",
        type=int,
        default=1200,
        help="tokens of a typical prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--output-tokens",
        metavar="N",
        type=int,
        default=250,
        help="tokens of a typical response (default: %(default)s)",
    )


def _add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what lies in memory beside the model."""
    parser.add_argument(
        "--kv-cache-dtype",
        choices=KV_DTYPES,
        default=KV_DTYPES[0],
        help="precision of the KV cache (default: %(default)s, 16 bits)",
    )
    parser.add_argument("--draft", metavar="MODEL", help="a draft model for speculative decoding")
    parser.add_argument(
        "--adapters",
        metavar="N",
        type=int,
        default=0,
        help="slots for LoRA adapters (default: %(default)s)",
    )
    parser.add_argument(
        "--rank",
        metavar="R",
        type=int,
        default=16,
        help="rank of the adapters (default: %(default)s)",
    )
