"""The phases of an engine's start are read from its log."""

import pytest

from tessera.domain.vllm.startup_log import engine_phases

PREFIX = "(EngineCore pid=111) INFO 06-07 08:56:35 [core.py:349]"
DOWNLOAD = f"{PREFIX} Time spent downloading weights for acme/llama: 67.507208 seconds"
LOADING = f"{PREFIX} Model loading took 13.63 GiB memory and 88.890731 seconds"
INIT = f"{PREFIX} init engine (profile, create kv cache, warmup model) took 94.98 s"


@pytest.mark.parametrize(
    ("lines", "phases"),
    [
        ([], {}),
        (["Loading weights took 16.40 seconds", "took all night"], {}),
        ([LOADING], {"load": 88.890731}),
        (
            [DOWNLOAD, LOADING, f"{INIT} (compilation: 34.32 s)"],
            {"files": 67.507208, "load": 21.383523, "compile": 34.32, "warm-up": 60.66},
        ),
        # Without compilation, and as older versions write it.
        ([INIT + "econds"], {"warm-up": 94.98}),
        ([f"{PREFIX} Model loading took 1.2 GiB and 3.5 seconds"], {"load": 3.5}),
        # Of several processes the slowest counts.
        ([LOADING, LOADING.replace("88.8", "90.8")], {"load": 90.890731}),
        # Numbers that no engine takes.
        ([LOADING.replace("88.890731", "9" * 400)], {}),
        ([DOWNLOAD, LOADING.replace("88.8", "8.8")], {"files": 67.507208, "load": 0}),
    ],
)
def test_the_log_has_what_pod_times_do_not_tell_apart(
    lines: list[str], phases: dict[str, float]
) -> None:
    assert engine_phases("\n".join(lines)) == pytest.approx(phases)
