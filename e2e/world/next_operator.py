"""The operator of a release to come: its builder has a second version.

The image table lets it stand for `tessera/operator-next`.
"""

from dataclasses import replace

from tessera.controller.main import main
from tessera.resources.defaults import DEFAULTS

if __name__ == "__main__":
    DEFAULTS[2] = replace(DEFAULTS[1], pre_stop_seconds=6)
    main()
