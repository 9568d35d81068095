"""Stands in for `tessera bench` where the package tessera-lab is not installed."""

import argparse
import sys
from typing import NoReturn


def run(arguments: argparse.Namespace) -> NoReturn:
    """Exit with 1 and the name of the package."""
    sys.exit(f"tessera {arguments.command} needs the package tessera-lab: pip install tessera-lab")
