"""`tessera completion`: scripts with which a shell asks `tessera __complete`."""

import argparse

from tessera.cli.output import Output

_BASH = """\
_tessera() {
    local IFS=$'\\n'
    COMPREPLY=($(tessera __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _tessera tessera
"""
_ZSH = """\
#compdef tessera
_tessera() {
    local -a candidates
    candidates=("${(@f)$(tessera __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$candidates" ]]; then compadd -a candidates; else _files; fi
}
compdef _tessera tessera
"""
_FISH = """\
function __tessera
    tessera __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null
end
complete -c tessera -a '(__tessera)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run(arguments: argparse.Namespace) -> Output:
    """Print the script of a shell."""
    return Output(SCRIPTS[arguments.shell])
