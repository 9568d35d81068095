"""The phases of an engine's start, by the lines that vLLM writes to its log.

    Time spent downloading weights for org/name: 67.507208 seconds
    Model loading took 13.63 GiB memory and 88.890731 seconds
    init engine (profile, create kv cache, warmup model) took 94.98 s (compilation: 34.32 s)

Loading includes the download, and the last line the compilation. Of several processes the slowest
counts.
"""

import re
from collections.abc import Mapping

# A pod's process may write any number.
_SECONDS = r"(\d{1,6}(?:\.\d{1,6})?) s(?:econds)?\b"
_DOWNLOAD = re.compile(rf"Time spent downloading weights for \S+: {_SECONDS}")
_LOADING = re.compile(rf"Model loading took \S+ GiB(?: memory)? and {_SECONDS}")
_INIT = re.compile(
    rf"init engine \(profile, create kv cache, warmup model\) took {_SECONDS}"
    rf"(?: \(compilation: {_SECONDS}\))?"
)


def engine_phases(log: str) -> Mapping[str, float]:
    """Return the seconds of files, load, compile and warm-up, as far as the log has them."""
    downloads = [float(seconds) for seconds in _DOWNLOAD.findall(log)]
    loadings = [float(seconds) for seconds in _LOADING.findall(log)]
    inits = [(float(whole), float(part or 0)) for whole, part in _INIT.findall(log)]
    phases = {}
    if downloads:
        phases["files"] = max(downloads)
    if loadings:
        phases["load"] = max(0.0, max(loadings) - phases.get("files", 0.0))
    if inits:
        whole, compilation = max(inits)
        if compilation:
            phases["compile"] = compilation
        phases["warm-up"] = max(0.0, whole - compilation)
    return phases
