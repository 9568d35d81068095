"""Completion: the scripts of shells, and the candidates for kubectl."""

import sys
from collections.abc import Sequence
from types import SimpleNamespace

from click.shell_completion import ShellComplete, get_completion_class

from tessera.cli.commands import root_command
from tessera.cli.output import Output

# The scripts of the shells set it, and the program prints candidates instead of running.
COMPLETE_VARIABLE = "_TESSERA_COMPLETE"
# The last line of cobra's completion protocol, which kubectl speaks to plugins.
_DIRECTIVE_NO_FILES, _DIRECTIVE_DEFAULT = ":4", ":0"


def main() -> None:
    """Run `kubectl_complete-tessera`."""
    words = candidates(sys.argv[1:])
    sys.stdout.writelines(f"{word}\n" for word in words)
    sys.stdout.write(f"{_DIRECTIVE_NO_FILES if words else _DIRECTIVE_DEFAULT}\n")


def candidates(words: Sequence[str]) -> list[str]:
    """Return candidates for the last word; none where any value is allowed."""
    *previous_words, prefix = words or ("",)
    completion = ShellComplete(root_command(), {}, "tessera", COMPLETE_VARIABLE)
    items = completion.get_completions(previous_words, prefix)
    return sorted(item.value for item in items if item.type == "plain")


def run(arguments: SimpleNamespace) -> Output:
    """Print the completion script of a shell."""
    shell = get_completion_class(arguments.shell)
    assert shell is not None  # noqa: S101 - the argument's choices are click's shells
    return Output(shell(root_command(), {}, "tessera", COMPLETE_VARIABLE).source())
