"""What nodes lack for a pod, of the scheduler's message about all nodes of the cluster."""

import re

from tessera.api.text import counted

# What follows the first sentence is about preemption and claims.
_MESSAGE = re.compile(r"0/\d+ nodes are available: (.+?)(?:\.(?: .*)?)?", re.DOTALL)
_CLAUSE = re.compile(r"(\d+) (.+?)(?=, \d+ |$)", re.DOTALL)
# Nodes of other pools; that the pod names others says nothing of what they lack.
_OTHER_NODES = "node(s) didn't match Pod's node affinity/selector"


def missing_on_nodes(message: str) -> str:
    """Return what the nodes lack that the pod may use; another message as it is."""
    match = _MESSAGE.fullmatch(message)
    clauses = _CLAUSE.findall(match[1]) if match is not None else []
    lacks = [clause for clause in clauses if clause[1] != _OTHER_NODES] or clauses
    return ", ".join(_lack(int(count), text) for count, text in lacks) or message


def _lack(count: int, text: str) -> str:
    nodes = counted(count, "node")
    if text.startswith("Insufficient "):
        return f"{nodes} without enough free {text.removeprefix('Insufficient ')}"
    return f"{nodes} {text.removeprefix('node(s) ')}"
