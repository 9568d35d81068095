"""The operator of a release to come: its builder has one version more.

The image table lets it stand for `tessera/operator-next`.
"""

from dataclasses import replace

from tessera.controller.main import main
from tessera.resources.defaults import DEFAULTS, newest_version

if __name__ == "__main__":
    newest = newest_version()
    DEFAULTS[newest + 1] = replace(DEFAULTS[newest], pre_stop_seconds=6)
    main()
