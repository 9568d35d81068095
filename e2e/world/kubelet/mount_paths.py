"""Mount paths without mounts: the path in the pod becomes the path on this machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Puts the real folder wherever a mount path stands in a text.

    The longest mount path wins, and only whole path components are touched: with a mount at
    `/data`, `/data/x` and `--dir=/data` are rewritten, `/data-old` and `/var/data` are not.
    """

    mounts: Mapping[str, Path]

    def __call__(self, text: str) -> str:
        paths = sorted((path for path in self.mounts if path != "/"), key=len, reverse=True)
        if not paths:
            return text
        either = "|".join(re.escape(path) for path in paths)
        # Not inside a longer path, save behind the two slashes of file:///data.
        pattern = rf"(?:(?<![\w./-])|(?<=://))(?:{either})(?![\w.-])"
        return re.sub(pattern, lambda match: str(self.mounts[match[0]]), text)


def mount_path(path: str) -> str:
    """Without a slash at its end, as the table above wants it."""
    return path.rstrip("/") or "/"
