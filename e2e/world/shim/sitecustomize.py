"""Lets a process, as it starts, know the Services of its world, and volumes that refuse writes."""

import os
import sys
from pathlib import Path

_E2E = str(Path(__file__).parents[2])
sys.path.append(_E2E)
from fakedns.service_names import SERVICES, resolve_services  # noqa: E402
from fakevolume.faulty_volume import FAULTS, marked_error, refuse_writes  # noqa: E402

# Its programs find no module of the tests.
sys.path.remove(_E2E)

resolve_services(Path(os.environ[SERVICES]))
if FAULTS in os.environ:
    refuse_writes(marked_error)
