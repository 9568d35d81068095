"""The table of what a gateway takes, from the figures that `make bench-gateway` saved."""

import json

from environments import ROOT

PAGE = "docs/benchmarks.md"
_ROWS = {
    "json_cpu_ms": "CPU of a request, in ms",
    "stream_cpu_ms": "of a stream of 20 chunks at once, in ms",
    "chunk_cpu_us": "of a chunk of a stream with one every 10 ms, in us",
    "long_prompt_cpu_ms": "of a prompt of 220 KB, in ms",
    "json_vs_vllm_router": "of a request, relative to vllm-router",
    "stream_vs_vllm_router": "of a stream, relative to vllm-router",
    "chunk_vs_vllm_router": "of a chunk, relative to vllm-router",
    "vs_litellm": "of a stream, relative to LiteLLM",
    "rss_slope_bytes_per_request": "bytes of memory that a request leaves, in the second half of "
    "{memory_requests:,} with 10,000 keys, 1,000 of them revoked",
    "load_average": "load of the machine at the end",
}


def table() -> str:
    """Return the table; a figure that was not measured is left empty."""
    path = ROOT / "docs" / "figures" / "gateway.json"
    figures = json.loads(path.read_text(encoding="ascii"))
    lines = ["| figure | | saved |", "| --- | --- | --- |"]
    for name, text in _ROWS.items():
        value = figures.get(name)
        shown = "" if value is None else f"{value:.3g}"
        lines.append(f"| `{name}` | {text.format(**figures)} | {shown} |")
    return "\n".join(lines)
