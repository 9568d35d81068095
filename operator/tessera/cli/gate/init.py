"""`tessera gate init`: a starter suite."""

from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.gate.starter import starter_rows
from tessera.cli.output import Output


def run(arguments: SimpleNamespace) -> Output:
    """Print the suite."""
    if not 1 <= arguments.per_stratum <= 1000:
        raise CommandError(f"--per-stratum {arguments.per_stratum}: write a number from 1 to 1000")
    try:
        return Output.of_lines(starter_rows(arguments.seed, arguments.per_stratum))
    except ValueError as error:
        raise CommandError(f"--per-stratum {arguments.per_stratum}: {error}") from error
