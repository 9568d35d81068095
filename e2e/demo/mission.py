"""The demos: which scenes each of them plays, and in which world."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo import batch, bill, budget, engine, gateway, mig, quality, routes, scale, serve
from demo.cluster import EXAMPLES, InstalledCluster, install
from demo.scene import Chain, Scene

FLEET = Path(__file__).parent / "mission.yaml"
TENANTS = (serve.SERVICE.namespace, batch.NAMESPACE, budget.SERVICE.namespace, mig.NAMESPACE)
# A spot node that dies takes no operator with it.
_VALUES = (
    "gateway.enabled=true",
    *(rf"{part}nodeSelector.kubernetes\.io/hostname=control" for part in ("", "gateway.")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The scenes of a run, and its world."""

    acts: Sequence[Sequence[Chain]]
    """Acts follow each other; the chains of an act play at once."""
    backend: mig.Backend = "Agent"
    fleet: Path = FLEET

    async def install(self, cluster: InstalledCluster, *values: str) -> None:
        """Install the chart, and create the pools of the examples."""
        cluster.say("installing the chart with Helm")
        await install(cluster, *_VALUES, *mig.values(self.backend), *values)
        await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))


_SERVE = Scene(
    title="A service on a MIG slice",
    expected=f"{serve.SERVICE} names a model and no hardware, and says why it runs where it does.",
    play=serve.run,
)
_SCALE = Scene(
    title="Replicas follow the load",
    expected="many clients come and leave; queue, DCGM activity and arrivals rise and fall, and "
    "the replicas with them.",
    play=scale.run,
)
_BATCH = Scene(
    title="A batch on a spot node that is taken away",
    expected=f"a file of {batch.ROWS} rows runs where it costs least; its node dies without a "
    "notice, and every row comes out once.",
    play=batch.run,
)
_BUDGET = Scene(
    title="A budget that acts",
    expected=f"{budget.SERVICE} needs 3 replicas and may pay for 2, until the limit is raised.",
    play=budget.run,
)
_MIG = Scene(
    title="GPUs are repartitioned under streams",
    expected=f"{mig.SMALL.replicas} replicas with a GPU each move onto slices of fewer GPUs, and "
    "no stream breaks.",
    play=functools.partial(mig.run, backend="Agent", fleet=mig.SMALL),
)
_BILL = Scene(
    title="The bill of these minutes",
    expected="every GPU second is billed to a tenant, or named unused.",
    play=functools.partial(bill.run, tenants=TENANTS),
)
_GATEWAY = Scene(
    title="Two tenants share models",
    expected="keys, a shared name, limits, charges, fair queues, a new replica, caches, a model "
    "that sleeps, and a spot node that is lost under streams.",
    play=gateway.run,
)
_QUALITY = Scene(
    title="A cheaper version is tried before users meet it",
    expected=f"8-bit weights of {quality.SERVICE} that lose a stratum are refused, and those that "
    "lose nothing are rolled out, with what they save.",
    play=quality.run,
)
_ROUTES = Scene(
    title="One name over three models",
    expected=f"`{routes.ROUTE}` answers each request with the cheapest model that suits it, the "
    "hardest by an outside provider, and with the next one when a model dies.",
    play=routes.run,
)
_CHAINS: Mapping[str, Chain] = {
    "scale": (_SERVE, _SCALE),
    "budget": (_BUDGET,),
    "batch": (_BATCH,),
    "gateway": (_GATEWAY,),
    "quality": (_QUALITY,),
    "routes": (_ROUTES,),
}
DEMOS = ("mission", *_CHAINS, "mig")


def find_demo(name: str, backend: mig.Backend = "Agent", vllm: Path | None = None) -> Demo:
    """Return a demo; the mission has a scene more with an environment of a real engine."""
    if name == "mig":
        return Demo(acts=(((_repartition(backend),),),), backend=backend, fleet=mig.WHOLE.nodes)
    if name in _CHAINS:
        return Demo(acts=((_CHAINS[name],),))
    real = (((_real_engine(vllm),),),) if vllm is not None else ()
    chains = (_CHAINS["scale"], (_BATCH,), (_BUDGET,), (_MIG,))
    return Demo(acts=(chains, *real, ((_BILL,),)))


def _repartition(backend: mig.Backend) -> Scene:
    return Scene(
        title=_MIG.title,
        expected=f"{mig.WHOLE.replicas} replicas with a GPU each move onto slices of fewer GPUs by "
        f"{backend}, and no stream breaks.",
        play=functools.partial(mig.run, backend=backend, fleet=mig.WHOLE),
    )


def _real_engine(venv: Path) -> Scene:
    return Scene(
        title="A real vLLM on the CPU",
        expected=f"{engine.SERVICE} streams text that a real engine generates.",
        play=functools.partial(engine.run, venv=venv),
    )
