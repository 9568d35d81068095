"""What charges take of a gateway's processor: this tree in turn with an earlier one.

`bench_gateway_before.py --before TREE` runs gateways of both trees before one engine, each as in a
pod with a store. A round measures the earlier tree twice, this tree as it was asked before, and
this tree with prices and two limits of charges (of the tenant and of each model, since clients
come with 10,000 keys in turn), in an order that turns round. The figures are
medians of the ratios of a round: `aa` of the earlier tree to itself, `off` and `vs_before` of this
one. Only processor time of the gateway is compared. The last line is `BENCH` and the figures.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench_gateway import GAP_MS, Load, _bodies, _built, _cpu_of, _engine
from environments import ROOT
from figures import benchmark
from gateway_process import answers
from world.slots import free_port

# Writes the directory of a tree by its own types; of this tree also one that charges.
_WRITE = """
import sys
from pathlib import Path
from bench_gateway import _directory
from gateway_process import write_directory
directory = _directory(sys.argv[2])
if sys.argv[3] == "on":
    from dataclasses import replace
    from datetime import date
    from tessera.api.price_list import PriceEntry, PriceListSpec
    from tessera.domain.charge.price_book import PriceListBook, revised_book
    from tessera.domain.observed.price_lists import ObservedPriceList
    from tessera.domain.charge.scopes import ChargeLimit, MemberKind
    entry = PriceEntry(from_=date(2026, 1, 1), models=("*",), input="1", output="4")
    spec = PriceListSpec(entries=(entry,))
    book = revised_book(PriceListBook(), [ObservedPriceList(name="standard", spec=spec)], 0.0)
    limits = tuple(
        ChargeLimit(budget="team-a", generation=1, name=name, window=window, amount=10**18,
                    currency="USD", time_zone="UTC", kind=kind)
        for name, window, kind in (("month", "Month", None), ("models", "Day", MemberKind.MODEL))
    )
    tenant = replace(directory.tenants["team-a"], charge_limits=limits)
    directory = replace(directory, tenants={"team-a": tenant}, prices=book)
write_directory(Path(sys.argv[1]), directory)
"""


async def measure(before: str = "", rounds: int = 10, requests: int = 1500) -> dict[str, object]:
    """Return the ratios of processor time."""
    if not before:
        sys.exit("--before names the folder of the earlier tree")
    figures = defaultdict[str, list[float]](list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-")))
        program, bodies = _built(), _bodies(folder)
        fast = stack.enter_context(_engine(program, 0))
        slow = stack.enter_context(_engine(program, GAP_MS))
        loads = {
            "json": Load(body=bodies["json"], connections=16, requests=requests),
            "stream": Load(body=bodies["stream"], connections=16, requests=requests),
            "chunk": Load(body=bodies["stream"], connections=32, requests=requests // 3, slow=True),
        }
        sides = {"before": (before, "off"), "again": (before, "off")}
        sides |= {"off": (str(ROOT), "off"), "on": (str(ROOT), "on")}
        for number in range(rounds):
            order = [*sides][number % 4 :] + [*sides][: number % 4]
            for name, load in loads.items():
                engine = slow if load.slow else fast
                cpu = {
                    side: await _cpu(folder, program, engine, load, *sides[side]) for side in order
                }
                figures[f"{name}_cpu_aa"].append(cpu["again"] / cpu["before"])
                least = (cpu["before"] + cpu["again"]) / 2
                figures[f"{name}_cpu_off"].append(cpu["off"] / least)
                figures[f"{name}_cpu_vs_before"].append(cpu["on"] / least)
                figures[f"{name}_cpu_ms_before"].append(least)
            print(number, {name: round(values[-1], 3) for name, values in figures.items()})
    return {
        **{name: round(median(values), 3) for name, values in sorted(figures.items())},
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
    }


async def _cpu(
    folder: Path, program: str, engine: str, load: Load, tree: str, charges: str
) -> float:
    """Return the milliseconds that a gateway of a tree takes for a request."""
    state = Path(tempfile.mkdtemp(dir=folder))
    environment = os.environ | _path_of(tree)
    write = (sys.executable, "-c", _WRITE, str(state), engine, charges)
    await asyncio.to_thread(subprocess.run, write, check=True, env=environment, cwd=tree)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, f"{tree}/tools/gateway_process.py", str(port), str(state)),
        env=environment,
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await answers(f"127.0.0.1:{port}", "/readyz")
        return (await _cpu_of(program, f"127.0.0.1:{port}", load, process.pid)).cpu_ms
    finally:
        process.kill()
        await process.wait()


def _path_of(tree: str) -> Mapping[str, str]:
    folders = (f"{tree}/{name}" for name in ("operator", "e2e", "tools", ""))
    return {"PYTHONPATH": os.pathsep.join(folders)}


if __name__ == "__main__":
    benchmark(
        measure,
        before={"help": "folder of the earlier tree"},
        rounds={"help": "of four gateways each"},
        requests={"help": "of each load"},
    )
