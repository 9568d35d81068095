"""Options of `tessera gate`."""

import click

from tessera.cli.options import (
    AMOUNT,
    CLUSTER_OPTIONS,
    FILE,
    INTEGER,
    Command,
    Group,
    argument,
    namespace_option,
    option,
    output_options,
)

_MARGINS = (
    option("--max-drop-points", "loss of the total score, in points of 100", **AMOUNT, default=2.0),
    option(
        "--max-relative-drop",
        "share of the baseline's score that a stratum may lose",
        **AMOUNT,
        default=0.05,
    ),
    option("--min-prompts", "smaller strata are judged together", **INTEGER, default=30),
)
_PRICES = (
    option("--price", "USD for a million output tokens of the model", **AMOUNT),
    option("--against-price", "the same of what it is compared with", **AMOUNT),
)

GATE_INIT = Command(
    "init",
    "a starter suite of prompts",
    "Prints a suite as JSONL: arithmetic, exact formats, several steps, code by its form, tool "
    "calls, rare formats, long input and three languages. The same seed gives the same suite.",
    option("--seed", "what the prompts are drawn from", **INTEGER, default=1),
    option("--per-stratum", "prompts of each stratum", **INTEGER, default=40),
    module="tessera.cli.gate.init",
)

GATE_IMPORT = Command(
    "import",
    "a suite from the logs of lm-eval",
    "Prints a suite as JSONL from files that lm-eval wrote with --log_samples. Samples that need "
    "code to be run, or likelihoods of long texts, are left out and counted.",
    argument("logs", "samples_TASK_TIME.jsonl", nargs=-1, required=True, type=FILE["type"]),
    option("--stratum", "stratum of all rows (default: one by task)", metavar="NAME"),
    module="tessera.cli.gate.import_logs",
)

GATE_RUN = Command(
    "run",
    "ask a model a suite, and compare it with another one",
    "Asks the model each prompt once, and what it is compared with twice, since two runs of one "
    "model differ too. Prints quality, latency and dollars, and exits with 1 where a loss is "
    "proven. With --answers a second call asks only what has no answer yet.",
    argument("suite", "JSONL file of prompts", type=FILE["type"]),
    option("--url", "base URL of the server of the model", required=True, metavar="URL"),
    option("--model", "its name there", required=True, metavar="NAME"),
    option("--against", "base URL of what it is compared with", metavar="URL"),
    option("--against-model", "its name there (default: --model)", metavar="NAME"),
    option("--judge", "base URL of the model that scores rows of scorer judge", metavar="URL"),
    option("--judge-model", "its name there", metavar="NAME"),
    option(
        "--task",
        "what the model does: answer, or rank documents by a reranker or by embeddings",
        type=click.Choice(("chat", "rerank", "embed")),
        default="chat",
    ),
    option("--api-key-file", "file with the API key", **FILE),
    option("--answers", "folder in which answers are kept", **FILE),
    option(
        "--repeats",
        "answers to each prompt, sampled with seeds",
        metavar="N",
        type=click.IntRange(1, 8),
        default=1,
    ),
    option(
        "--concurrency", "prompts in flight", metavar="N", type=click.IntRange(1, 256), default=8
    ),
    *_PRICES,
    option("--hourly", "USD for an hour of the hardware of the model", **AMOUNT),
    option("--against-hourly", "the same of what it is compared with", **AMOUNT),
    *_MARGINS,
    *output_options(),
    module="tessera.cli.gate.run",
)

GATE_COMPARE = Command(
    "compare",
    "compare two files of answers",
    "Compares answers to the same suite, as a gate keeps them on its claim and as tessera gate run "
    "--answers writes them. Rows that a judge scores are left out.",
    argument("baseline", "answers of the stable version", type=FILE["type"]),
    argument("candidate", "answers of the changed one", type=FILE["type"]),
    *_PRICES,
    *_MARGINS,
    *output_options(),
    module="tessera.cli.gate.compare",
)

GATE_PIN = Command(
    "pin",
    "digest and counts of a suite for its QualityGate",
    "A gate with them judges by this file alone: another one is SuiteChanged. Prints a patch, or "
    "writes it with --gate or --manifest. Fewer prompts, or another digest, need the verb bypass "
    "on qualitygates.",
    argument("suite", "JSONL file of prompts", type=FILE["type"]),
    option("--gate", "QualityGate to patch", metavar="NAME"),
    option("--manifest", "YAML file with a QualityGate to write it into", **FILE),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the QualityGate"),
    module="tessera.cli.gate.pin",
)

GATE_SHOW = Command(
    "show",
    "what QualityGates know and decided",
    "Without a name, all QualityGates of the namespace with their latest verdicts. With one: its "
    "suite, what runs, and the table of its latest verdict: quality, latency and dollars.",
    argument("gate", "name of the QualityGate", required=False),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the QualityGates"),
    *output_options(),
    module="tessera.cli.gate.show",
)

GATE = Group(
    "gate",
    short_help="suites of prompts on which a change is tried",
    help="Commands for the suites of QualityGates.",
    commands=[GATE_INIT, GATE_IMPORT, GATE_PIN, GATE_SHOW, GATE_RUN, GATE_COMPARE],
)
