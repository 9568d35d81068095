"""What the files of a model cost before an engine starts: their download, and every later start.

The runner's own process fetches from a real S3 server on this machine (versitygw), with the digests
of SHA256SUMS checked, and is compared with `cat` of the same files into the same disk, until they
are on it. The time of a fetch is that of its download, without the start of Python; its memory is
that of the whole process. Bytes from the source are counted by a proxy. The last line is `BENCH`
and the figures as JSON.
"""

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from figures import benchmark
from tessera.batch_runner.model.sources import SUMS
from tests.batch_runner.object_stores import BUCKET, LLAMA, Gate, digest_of, upload
from world.hub import a_model
from world.object_store import ObjectStore, serve_object_store

_MIB = 2**20
_SHARDS = 4
_STARTS = 10
# The peak is that of the process itself; a parent sees its own in it, if that is larger.
_RUNNER = """
import re, sys
from pathlib import Path
from tessera.batch_runner.main import main
code = main()
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""
_DOWNLOAD = """
import asyncio, sys, time
from pathlib import Path
from tessera.batch_runner.model.download import DownloadProgress, download
from tessera.batch_runner.model.object_store import ObjectFolder
began = time.perf_counter()
folder = ObjectFolder(sys.argv[1], sys.argv[2], "us-east-1")
asyncio.run(download(folder, Path(sys.argv[3]), DownloadProgress()))
print(time.perf_counter() - began)
"""
# For the modelled times: the files of a model with 70 billion weights, and a network.
_LARGE_BYTES = 141e9
_NETWORK_BYTES_PER_SECOND = 10e9 / 8


async def measure(
    mib: int = 2048, rounds: int = 3, counted_mib: int = 64, folder: str = ""
) -> dict[str, object]:
    """Count the bytes of starts, and fetch files of this size beside cat, on the folder's disk."""
    with tempfile.TemporaryDirectory(dir=folder or None) as work:
        async with serve_object_store(Path(work) / "store", BUCKET) as store:
            os.environ.update(store.environment())
            return {
                **await _count_bytes(store, Path(work), counted_mib),
                **await _compare(store, Path(work), mib, rounds),
                **_modelled(),
            }


async def _count_bytes(store: ObjectStore, folder: Path, mib: int) -> dict[str, object]:
    """Count what one start, the next one, and ten at once take from the source."""
    uri = await _upload_model(store, "counted", mib)
    passed = []
    for into, starts in (("one", 1), ("one", 1), ("ten", _STARTS)):
        async with Gate(store.url, 2**60) as gate:
            fetches = [_fetch(uri, gate.url, folder / into) for _ in range(starts)]
            await asyncio.gather(*fetches)
            passed.append(gate.passed)
    first, second, ten = passed
    return {
        "second_start_bytes_from_source": second,
        "ten_starts_bytes_vs_one": round(ten / first, 3),
    }


async def _compare(store: ObjectStore, folder: Path, mib: int, rounds: int) -> dict[str, object]:
    """Fetch and copy in turn."""
    uri = await _upload_model(store, "large", mib)
    fetch_seconds, cat_seconds, into = [], [], folder / "large"
    for _ in range(rounds):
        fetch_seconds.append(await _time_download(uri, store.url, into))
        shutil.rmtree(into)
        cat_seconds.append(await _cat(store.buckets / BUCKET / "large", folder / "copy"))
    rss_mib = await _fetch(uri, store.url, into)
    return {
        "fetch_vs_cat": round(median(cat_seconds) / median(fetch_seconds), 3),
        "fetch_mib_per_second": round(mib / median(fetch_seconds), 1),
        "cat_mib_per_second": round(mib / median(cat_seconds), 1),
        "fetch_rss_mib": rss_mib,
        "fetched_mib": mib,
    }


async def _time_download(uri: str, endpoint: str, into: Path) -> float:
    """Return the seconds of a download in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DOWNLOAD, uri, endpoint, str(into), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return float(output)


async def _upload_model(store: ObjectStore, name: str, mib: int) -> str:
    """Put a model of this size into the bucket, and return its location."""
    block = os.urandom(mib * _MIB // _SHARDS)
    files = {"config.json": a_model()["config.json"]}
    sums = {"config.json": hashlib.sha256(files["config.json"]).hexdigest()}
    await upload(store, files, name)
    for number in range(_SHARDS):
        shard = f"model-{number}.safetensors"
        content = number.to_bytes(8, "big") + block[8:]
        sums[shard] = hashlib.sha256(content).hexdigest()
        await upload(store, {shard: content}, name)
    text = "\n".join(f"{digest}  {file}" for file, digest in sums.items()).encode()
    await upload(store, {SUMS: text}, name)
    return LLAMA.replace("llama", name) + digest_of({SUMS: text})


async def _fetch(uri: str, endpoint: str, into: Path) -> int:
    """Run the runner's process; return its peak of resident memory in MiB."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _RUNNER,
        "fetch", f"--uri={uri}", f"--report={into.with_name('report')}", f"--into={into}",
        f"--endpoint={endpoint}", "--region=us-east-1", "--host=127.0.0.1", "--port=0",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"the fetch of {uri} ended with {process.returncode}")
    return int(output) // 1024


async def _cat(source: Path, target: Path) -> float:
    """Copy the same files, until they are on the disk as those of a fetch are."""
    began = time.perf_counter()
    script = f"cat {source}/*.safetensors > {target} && sync {target}"
    copy = await asyncio.create_subprocess_exec("sh", "-c", script)
    if await copy.wait():
        raise SystemExit(f"cannot copy {source}")
    return time.perf_counter() - began


def _modelled() -> dict[str, object]:
    seconds = _LARGE_BYTES / _NETWORK_BYTES_PER_SECOND
    return {
        "modelled_fetch_70b_at_10_gbit_seconds": round(seconds, 1),
        "modelled_ten_starts_70b_each_its_own_seconds": round(_STARTS * seconds, 1),
        "modelled_ten_starts_70b_shared_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    benchmark(
        measure,
        46,
        short={"mib": 4, "rounds": 1, "counted_mib": 4},
        mib={"help": "size of the files"},
        rounds={"help": "of fetch and cat"},
        counted_mib={"help": "size of the files whose bytes are counted"},
    )
